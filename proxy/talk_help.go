package proxy

// helpAnswer lists what works here for a key.
type helpAnswer struct {
	Commands []helpLine `json:"commands"`
	Notes    []string   `json:"notes"`
}

type helpLine struct {
	Command string `json:"command"`
	Does    string `json:"does"`
}

func help(a *asker, args []string) (answer, error) {
	if err := noArgs("help", args); err != nil {
		return nil, err
	}
	h := &helpAnswer{Notes: []string{
		"HOST stands for the name by which you reach this host; --json makes any answer one for programs, and --watch repeats it.",
		"There is no shell, and no command runs here: Nix clients name this host as a builder or a store.",
	}}
	h.add("ssh HOST status", "builders, their slots and the queue")
	if a.seesReasons() {
		h.add("ssh HOST queue", "what waits for a builder, in order, and why")
		h.add("ssh HOST builds [--failed] [--since 12h]", "what runs, and how the last builds ended; --principal, --builder, --system and --limit pick some")
		h.add("ssh HOST log BUILD [--follow]", "the log of one of these builds")
		h.add("ssh HOST why SYSTEM [FEATURE ...]", "where a build would go now, and why not elsewhere")
		h.add("ssh HOST why DERIVATION", "the same for a derivation that was sent here")
	}
	h.add("ssh HOST check [HOST]", "who you are here, and the lines for your Nix")
	h.add("nix store info --store ssh-ng://HOST", "whether Nix gets in (nix store ping before 2.19)")
	h.add("nix copy --from ssh-ng://HOST PATH", "fetch what is here")
	if a.seesReasons() {
		h.add("nix copy --to ssh-ng://HOST PATH", "send something")
		h.add("nix build --builders ssh-ng://HOST ...", "build here; a line in /etc/nix/machines does it always")
		h.Notes = append(h.Notes, "ssh://HOST works too, as does nix-copy-closure.")
	}
	if len(a.access.Principal.Jump) > 0 && !a.access.NoJump {
		h.add("ssh -J HOST TARGET", "reach a host behind this one")
	}
	return h, nil
}

func (h *helpAnswer) add(command, does string) {
	h.Commands = append(h.Commands, helpLine{command, does})
}

func (h *helpAnswer) print(page *page) {
	rows := make([][]string, len(h.Commands))
	for i, l := range h.Commands {
		rows[i] = []string{l.Command, l.Does}
	}
	page.table(rows)
	page.line("")
	for _, note := range h.Notes {
		page.line("%s", note)
	}
}
