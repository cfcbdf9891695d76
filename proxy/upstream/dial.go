package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
)

// What we offer to builders. The client's order wins in SSH, and AES-GCM moves
// twice the bytes of the others at half the CPU. ECDH over NIST curves and the
// MACs of the encrypt-and-mac kind are there for hosts in a FIPS mode and for old
// ones; what rests on SHA-1 is not.
var (
	ciphers = []string{
		ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
		ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
	}
	keyExchanges = []string{
		ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519,
		ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384, ssh.KeyExchangeECDHP521,
	}
	macs = []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM, ssh.HMACSHA256, ssh.HMACSHA512}
)

// clientVersion is what we call ourselves towards builders; it shows in the log
// of a verbose sshd.
const clientVersion = "SSH-2.0-nixbastion"

// link is an authenticated ssh connection with what must be served on it.
type link struct {
	ssh.Conn
	net      *netConn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// dial connects to a builder and logs in.
func (p *Pool) dial(ctx context.Context, t *target) (*link, error) {
	login, err := t.prepareLogin()
	if err != nil {
		return nil, err
	}
	tcp, err := p.connect(ctx, t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.HandshakeTimeout)
	defer cancel()
	return login.handshake(ctx, tcp)
}

func (p *Pool) connect(ctx context.Context, t *target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.ConnectTimeout)
	defer cancel()
	tcp, err := p.opts.Dial(ctx, "tcp", t.address)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, t.faultf(Unreachable, "", "no connection to %s within %s", t.address, p.opts.ConnectTimeout)
	}
	return tcp, t.fault(Unreachable, err)
}

// login is one attempt to log in.
type login struct {
	*target
	config *ssh.ClientConfig
	// keyErr is what is wrong with the host key; keyShown says that one was shown.
	keyErr   error
	keyShown bool
}

func (t *target) prepareLogin() (*login, error) {
	host, err := t.hostCheck()
	if err != nil {
		return nil, t.hostKeyFault(err)
	}
	signer, err := t.identity.load()
	if err != nil {
		return nil, t.fault(Auth, err)
	}
	l := &login{target: t}
	l.config = &ssh.ClientConfig{
		Config:            ssh.Config{Ciphers: ciphers, KeyExchanges: keyExchanges, MACs: macs},
		User:              t.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyAlgorithms: host.algorithms,
		ClientVersion:     clientVersion,
		HostKeyCallback: func(address string, remote net.Addr, key ssh.PublicKey) error {
			l.keyShown, l.keyErr = true, host.check(address, remote, key)
			return l.keyErr
		},
	}
	return l, nil
}

func (t *target) hostKeyFault(err error) error {
	return t.faultf(HostKey, fmt.Sprintf("compare with the output of: ssh-keyscan %s", scanArguments(t.address)), "%w", err)
}

func scanArguments(address string) string {
	host, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return address
	case port == "22":
		return host
	}
	return "-p " + port + " " + host
}

// handshake owns tcp. The end of ctx closes it, since a peer may stop anywhere.
func (l *login) handshake(ctx context.Context, tcp net.Conn) (*link, error) {
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	counted := newNetConn(tcp, l.traffic)
	conn, channels, requests, err := ssh.NewClientConn(counted, l.address, l.config)
	if !stop() {
		if err == nil {
			conn.Close()
		}
		err = ctx.Err()
	}
	if err != nil {
		return nil, l.explain(err)
	}
	return &link{Conn: conn, net: counted, channels: channels, requests: requests}, nil
}

// explain tells from how far the handshake came what was wrong.
func (l *login) explain(err error) error {
	var algorithms *ssh.AlgorithmNegotiationError
	var network net.Error
	switch {
	case l.keyErr != nil:
		return l.hostKeyFault(l.keyErr)
	case errors.As(err, &algorithms) && algorithms.What == "host key":
		return l.hostKeyFault(algorithms)
	case errors.Is(err, context.DeadlineExceeded):
		return l.faultf(Unreachable, "", "%s takes connections but does not finish the ssh handshake", l.address)
	case errors.Is(err, io.EOF) || errors.As(err, &network) || errors.Is(err, context.Canceled):
		return l.fault(Unreachable, fmt.Errorf("connect to %s: %w", l.address, err))
	case !l.keyShown:
		return l.fault(Unreachable, fmt.Errorf("connect to %s: %w", l.address, err))
	}
	return l.faultf(Auth, fmt.Sprintf("the public key of %s must be in the authorized_keys of account '%s'", l.identity.file, l.user),
		"does not let account '%s' in: %w", l.user, err)
}
