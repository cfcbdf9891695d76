package world

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"nixbastion/internal/testbed"
)

// A Proxy is a nixbastion on a host of its own. Its methods may be called from
// several goroutines, except those that start and end it.
type Proxy struct {
	bed  *testbed.Bed
	host *testbed.Host
	log  *journal

	mu      sync.Mutex // guards what follows
	spec    ProxySpec
	pid     int           // as this process sees it; 0 while it does not run
	ended   chan struct{} // closed when the running program ended
	hostKey string
}

// BuilderKey is the key by which the proxy of that name opens builders. A
// builder that is to know it again after Restart has it in HostSpec.Authorize.
func BuilderKey(bed *testbed.Bed, proxyName string) testbed.Key {
	return bed.UserKey(proxyName + "-builder-key")
}

// StartProxy adds a host with a proxy to the bed and returns once it listens on
// port 22. ctx bounds the start alone.
func StartProxy(ctx context.Context, bed *testbed.Bed, spec ProxySpec) (*Proxy, error) {
	spec = spec.withDefaults()
	p := &Proxy{bed: bed, log: newJournal(), spec: spec}
	if err := p.install(ctx); err != nil {
		return nil, fmt.Errorf("start proxy %s: %w", spec.Name, err)
	}
	return p, p.Start(ctx)
}

// install makes the host and all that the program needs.
func (p *Proxy) install(ctx context.Context) (err error) {
	hostSpec, err := p.spec.hostSpec()
	if err != nil {
		return err
	}
	if p.host, err = p.bed.Start(ctx, hostSpec); err != nil {
		return err
	}
	if err := p.letIn(ctx, p.spec.Builders); err != nil {
		return err
	}
	key := BuilderKey(p.bed, p.spec.Name)
	if err := p.writeSecret(ctx, identityFile, key.PrivatePEM); err != nil {
		return err
	}
	if err := p.makeSigningKeys(ctx, p.spec); err != nil {
		return err
	}
	return p.WritePolicy(ctx, p.spec.Policy(p.bed))
}

// makeSigningKeys has the program make the keys that are not there yet.
func (p *Proxy) makeSigningKeys(ctx context.Context, spec ProxySpec) error {
	for _, signing := range spec.Signing {
		for _, name := range signing.Keys {
			file := SigningKeyFile(name)
			if err := p.shell(ctx, fmt.Sprintf("mkdir -p %s && { test -e %[2]s || %[3]s key generate %[4]s --out %[2]s; }", path.Dir(file), file, Binary, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// PublicKey is the public half of a signing key, as in trusted-public-keys.
func (p *Proxy) PublicKey(ctx context.Context, name string) (string, error) {
	res, err := p.host.Shell(ctx, Binary+" key public "+SigningKeyFile(name))
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("public key of %s on %s: %s", name, p.host.Name(), res.Stderr)
	}
	return strings.TrimSpace(res.Stdout), err
}

// letIn makes builders let the proxy in. Those that do already get the key a
// second time, which sshd does not mind.
func (p *Proxy) letIn(ctx context.Context, builders []Builder) error {
	key := BuilderKey(p.bed, p.spec.Name)
	for _, b := range builders {
		if err := p.letInTo(ctx, b, key); err != nil {
			return err
		}
	}
	return nil
}

// letInTo gives the proxy what opens one builder.
func (p *Proxy) letInTo(ctx context.Context, b Builder, own testbed.Key) error {
	if b.Key.Name != "" {
		return p.writeSecret(ctx, b.identityFile(), b.Key.PrivatePEM)
	}
	return b.Host.AuthorizeMore(ctx, b.Account, own)
}

func (s ProxySpec) hostSpec() (testbed.HostSpec, error) {
	binary := s.Binary
	if binary == "" {
		binary = os.Getenv("NIXBASTION_BIN")
	}
	if binary == "" {
		return testbed.HostSpec{}, errors.New("the environment variable NIXBASTION_BIN does not name the program; `make build` makes bin/nixbastion")
	}
	if info, err := os.Stat(binary); err != nil || !path.IsAbs(binary) || info.IsDir() {
		return testbed.HostSpec{}, fmt.Errorf("NIXBASTION_BIN %q is no absolute path of a program", binary)
	}
	host := s.Host
	host.Name, host.Kind = s.Name, testbed.Plain
	host.Binds = maps.Clone(host.Binds)
	if host.Binds == nil {
		host.Binds = map[string]string{}
	}
	host.Binds[Binary] = binary
	if s.Activated {
		host.Packages = append(host.Packages, "systemd")
	}
	if s.StateOnDisk {
		host.OnDisk = append(host.OnDisk, StateDir)
	}
	return host, nil
}

// writeSecret makes a file that only root can read.
func (p *Proxy) writeSecret(ctx context.Context, file string, text []byte) error {
	if err := p.host.WriteFile(ctx, file, text); err != nil {
		return err
	}
	return p.shell(ctx, "chmod 600 "+file)
}

func (p *Proxy) shell(ctx context.Context, script string) error {
	res, err := p.host.Shell(ctx, script)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("%s on %s: status %d: %s", script, p.host.Name(), res.Status, res.Stderr)
	}
	return err
}

// Host is where the proxy runs.
func (p *Proxy) Host() *testbed.Host { return p.host }

// Spec is what the policy in force was made from, with defaults.
func (p *Proxy) Spec() ProxySpec {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spec
}

// HostKey is the proxy's host key, as a line of authorized_keys.
func (p *Proxy) HostKey() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hostKey
}

// Start starts the program again after Terminate or Kill, on the same state
// directory, and returns once it listens.
func (p *Proxy) Start(ctx context.Context) error {
	mark := p.Mark()
	p.launch(ctx)
	if err := p.activate(ctx); err != nil {
		return errors.Join(err, p.Kill())
	}
	if _, err := p.WaitLine(ctx, mark, Message("serving")); err != nil {
		return fmt.Errorf("start proxy %s: %w", p.host.Name(), errors.Join(err, p.Kill()))
	}
	if err := p.findProcess(); err != nil {
		return err
	}
	return p.introduce(ctx)
}

// findProcess notes the program's process.
func (p *Proxy) findProcess() error {
	pids, err := p.host.PIDs("^" + Binary + " serve")
	if err != nil || len(pids) != 1 {
		return errors.Join(fmt.Errorf("find the process of proxy %s among %v", p.host.Name(), pids), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pids[0]
	return nil
}

func (p *Proxy) launch(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := p.host.Command(context.WithoutCancel(ctx), p.words()...)
	cmd.Env = append(cmd.Env, p.spec.Env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	ended := make(chan struct{})
	p.ended = ended
	go func() {
		defer close(ended)
		if err := p.host.Run(cmd); err != nil {
			fmt.Fprintf(p.log, "the program ended: %v\n", err)
		}
	}()
}

// introduce makes the proxy's host key known to all hosts of the bed.
func (p *Proxy) introduce(ctx context.Context) error {
	line, err := p.host.ReadFile(ctx, path.Join(StateDir, "ssh_host_ed25519_key.pub"))
	if err != nil {
		return err
	}
	fields := strings.Fields(string(line))
	if len(fields) < 2 {
		return fmt.Errorf("host key %q is no public key", line)
	}
	key := strings.Join(fields[:2], " ")
	p.mu.Lock()
	known := p.hostKey == key
	p.hostKey = key
	p.mu.Unlock()
	if known {
		return nil
	}
	return p.bed.AddKnownHost(p.host.Name(), key)
}

// ending is closed when the program has ended.
func (p *Proxy) ending() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

func (p *Proxy) hasEnded() bool {
	select {
	case <-p.ending():
		return true
	default:
		return false
	}
}

// PID is the program's process as this machine sees it.
func (p *Proxy) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Signal sends a signal to the program.
func (p *Proxy) Signal(sig syscall.Signal) error {
	if p.hasEnded() {
		return fmt.Errorf("proxy %s has ended", p.host.Name())
	}
	return syscall.Kill(p.PID(), sig)
}

// Terminate sends SIGTERM and waits for the end.
func (p *Proxy) Terminate(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.ending():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("proxy %s does not end at SIGTERM: %w", p.host.Name(), context.Cause(ctx))
	}
}

// Kill ends the program by SIGKILL and waits for the end; nothing happens if it
// has ended.
func (p *Proxy) Kill() error {
	for _, pattern := range []string{activatedPattern, "^" + Binary + " serve"} { // who starts it again first
		pids, err := p.host.PIDs(pattern)
		for _, pid := range pids {
			err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
		}
		if err != nil {
			return err
		}
	}
	<-p.ending()
	return nil
}

// WritePolicy replaces the policy file without a word to the program.
func (p *Proxy) WritePolicy(ctx context.Context, text string) error {
	return p.writeSecret(ctx, ConfigFile, []byte(text))
}

// Reload makes the program take another policy, whose builders let it in. Name,
// Binary, Env and Host of spec are not looked at: the proxy stays where it is.
func (p *Proxy) Reload(ctx context.Context, spec ProxySpec) error {
	spec.Name = p.host.Name()
	spec = spec.withDefaults()
	if err := p.letIn(ctx, spec.Builders); err != nil {
		return err
	}
	if err := p.makeSigningKeys(ctx, spec); err != nil {
		return err
	}
	if err := p.ReloadText(ctx, spec.Policy(p.bed)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spec = spec
	return nil
}

// ReloadText is Reload with the text of a policy file. A refused policy is an
// error with the program's own words.
func (p *Proxy) ReloadText(ctx context.Context, text string) error {
	if err := p.WritePolicy(ctx, text); err != nil {
		return err
	}
	mark := p.Mark()
	if err := p.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	answer, err := p.WaitLine(ctx, mark, func(l Line) bool {
		return l.Msg == "policy loaded" || strings.HasPrefix(l.Msg, "policy refused")
	})
	if err != nil {
		return err
	}
	if answer.Msg != "policy loaded" {
		return fmt.Errorf("%s: %s", answer.Msg, answer.Text("error"))
	}
	return nil
}
