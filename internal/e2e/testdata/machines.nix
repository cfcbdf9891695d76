# The line of /etc/nix/machines that NixOS makes of nix.buildMachines in a module:
# the fields and defaults of its own module for remote builds.
{ configuration }:
let
  module = import configuration;
  settings = if builtins.isFunction module then module { config = { }; pkgs = { }; } else module;
  machines =
    assert settings.nix.distributedBuilds;
    settings.nix.buildMachines;
  dash = list: if list == [ ] then "-" else builtins.concatStringsSep "," list;
  line =
    m:
    builtins.concatStringsSep " " [
      "${if m.protocol or "ssh" == null then "" else "${m.protocol or "ssh"}://"}${
        if m.sshUser or null == null then "" else "${m.sshUser}@"
      }${m.hostName}"
      (if m.system or null != null then m.system else dash (m.systems or [ ]))
      (if m.sshKey or null != null then m.sshKey else "-")
      (toString (m.maxJobs or 1))
      (toString (m.speedFactor or 1))
      (dash (m.supportedFeatures or [ ] ++ m.mandatoryFeatures or [ ]))
      (dash (m.mandatoryFeatures or [ ]))
      (if m.publicHostKey or null != null then m.publicHostKey else "-")
    ];
in
builtins.concatStringsSep "\n" (map line machines)
