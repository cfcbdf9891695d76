# Each build writes where it ran, and a number that no second build would draw again.
let
  build = name: system: requiredSystemFeatures: derivation {
    inherit name system requiredSystemFeatures;
    greeting = ./greeting.txt;
    builder = "/bin/sh";
    args = [ "-c" ''
      PATH=/usr/bin:/bin
      number=$(od -An -N4 -tx4 /dev/urandom)
      echo "$(cat $greeting) from $name: built on $(uname -n), number" $number > $out
    '' ];
  };
in
{
  intel   = build "intel"   "x86_64-linux"  [ ];
  arm     = build "arm"     "aarch64-linux" [ ];
  vm      = build "vm"      "x86_64-linux"  [ "kvm" ];
  nowhere = build "nowhere" "aarch64-linux" [ "kvm" ];
}
