package proxy

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
)

var (
	errKeysOnly     = errors.New("only public keys are accepted")
	errRSASize      = errors.New("RSA keys must have 2048 to 8192 bits")
	errUserTooLong  = fmt.Errorf("user name longer than %d bytes", maxUserBytes)
	errNotAuthentic = errors.New("session without an identity")
)

// identityKey is where the identity stands in ssh.Permissions.ExtraData.
type identityKey struct{}

// verified is what stands there.
type verified struct {
	identity *Identity
	key      ssh.PublicKey
}

// serverConfig lets in whoever proves to own a known public key, and nobody else.
func (c *frontConn) serverConfig() *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		ServerVersion:           serverIdent,
		MaxAuthTries:            c.front.limits.AuthTries,
		PublicKeyAuthAlgorithms: userKeyAlgorithms,
		PublicKeyCallback:       c.keyOffered,
		// The only place where an identity comes from: it runs once the signature
		// was verified, with the key that made it.
		VerifiedPublicKeyCallback: c.keyVerified,
		// gliderlabs/ssh sets NoClientAuth because none of its own handlers is set;
		// then this callback decides.
		NoClientAuthCallback: func(ssh.ConnMetadata) (*ssh.Permissions, error) { return nil, errKeysOnly },
		AuthLogCallback:      c.auth.attempt,
	}
	config.Ciphers = c.front.offers.forClient(c.ident)
	config.KeyExchanges = keyExchanges
	config.MACs = macs
	return config
}

// keyOffered decides whether the client should bother to sign with a key. It
// proves nothing and therefore leaves nothing behind.
func (c *frontConn) keyOffered(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	c.auth.offer(meta.User(), key)
	if err := checkLogin(meta.User(), key); err != nil {
		return nil, err
	}
	return &ssh.Permissions{}, c.front.offered(key, c.remote.Addr())
}

// keyVerified makes the identity, from the verified key alone.
func (c *frontConn) keyVerified(meta ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	seen := c.front.reviews.Load()
	grant, err := c.worth(meta.User(), key)
	if err != nil {
		return nil, err
	}
	if err := c.logIn(grant); err != nil {
		return nil, err
	}
	who := &Identity{
		Grant: grant, Fingerprint: policy.Fingerprint(key),
		User: meta.User(), Remote: c.remote, ClientVersion: c.ident,
	}
	c.front.metrics.Login(metrics.LoginSuccess)
	c.front.log.Info("ssh login", append(c.where(), append(who.keyText(),
		"user", quotePeer(who.User), "client", quotePeer(c.ident))...)...)
	c.mu.Lock()
	c.login = &Login{Identity: who, Key: key, Since: time.Now()}
	c.mu.Unlock()
	c.reviewSince(seen)
	c.loggedInAs(who)
	return &ssh.Permissions{ExtraData: map[any]any{identityKey{}: &verified{who, key}}}, nil
}

// keyText names the key for a log, and the certificate if there is one.
func (who *Identity) keyText() []any {
	text := []any{"principal", who.Principal, "key", who.Fingerprint}
	if who.Certificate != "" {
		text = append(text, "certificate", who.Certificate)
	}
	return text
}

func (c *frontConn) worth(user string, key ssh.PublicKey) (Grant, error) {
	if err := checkLogin(user, key); err != nil {
		return Grant{}, err
	}
	return c.front.authorize(key, c.remote.Addr())
}

func checkLogin(user string, key ssh.PublicKey) error {
	if len(user) > maxUserBytes {
		return errUserTooLong
	}
	return checkUserKey(key)
}

// checkUserKey refuses kinds of keys whatever the policy says: that of the user,
// and that which signed his certificate.
func checkUserKey(key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok {
		if err := checkKeySize(cert.SignatureKey); err != nil {
			return fmt.Errorf("authority of the certificate: %w", err)
		}
		key = cert.Key
	}
	return checkKeySize(key)
}

// checkKeySize refuses RSA keys that are weak, and huge ones, which cost CPU
// before anybody is known; x/crypto itself goes up to 16384 bits.
func checkKeySize(key ssh.PublicKey) error {
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil // security keys of a fixed size
	}
	if pub, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok {
		if bits := pub.N.BitLen(); bits < 2048 || bits > 8192 {
			return errRSASize
		}
	}
	return nil
}

// logIn turns a stranger into a client: other clocks run from now on.
func (c *frontConn) logIn(grant Grant) error {
	limits := c.front.limits
	allowed := grant.MaxConnections
	orDefault(&allowed, limits.ConnectionsPerPrincipal)
	perMinute := grant.ConnectionsPerMinute
	orDefault(&perMinute, defaultConnectionsPerMinute)
	if !c.front.principals.take(grant.Principal, allowed) {
		return c.refuseKnown(RefusedCount, fmt.Sprintf("%s has %d connections already", grant.Principal, allowed))
	}
	if !c.front.rates.of(grant.Principal, perMinute).Allow() {
		c.front.principals.release(grant.Principal)
		return c.refuseKnown(RefusedRate, fmt.Sprintf("%s opened more than %d connections in a minute; try again in a moment", grant.Principal, perMinute))
	}
	c.front.penalties.enter(c.remote.Addr())
	c.grace.Stop()
	c.front.room.leave(c.waiter)
	c.granted = grant.Principal
	c.loggedIn.Store(true)
	c.unused = time.AfterFunc(limits.Unused, func() { c.abort("never used") })
	c.alive = startKeepAlive(c)
	return nil
}

// refuseKnown turns away who has a key that counts: that is no offence.
func (c *frontConn) refuseKnown(why Refusal, sentence string) error {
	c.front.refusals.count(why)
	c.mu.Lock()
	c.known = true
	c.mu.Unlock()
	return &ssh.BannerError{Err: errors.New(sentence), Message: "nixbastion: " + sentence + "\n"}
}

func (c *frontConn) isKnown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// identityOf returns who logged in, and an error if the key does not count any
// more: policies change while connections live. Who is nil only if nobody did.
func (c *frontConn) identityOf(conn *ssh.ServerConn) (who *Identity, err error) {
	if conn.Permissions == nil {
		return nil, errNotAuthentic
	}
	v, ok := conn.Permissions.ExtraData[identityKey{}].(*verified)
	if !ok {
		return nil, errNotAuthentic
	}
	grant, err := c.worth(v.identity.User, v.key)
	if err != nil {
		return v.identity, err
	}
	now := *v.identity
	now.Grant = grant
	return &now, nil
}

// authRecord collects what a refused login is logged with.
type authRecord struct {
	mu     sync.Mutex // guards what follows
	tried  bool       // there was an attempt or an offer
	user   string     // of the last one
	keys   []string   // fingerprints of what was offered
	reason string     // why the last attempt was refused
}

// maxLoggedKeys is how many fingerprints one refusal names.
const maxLoggedKeys = 20

func (a *authRecord) offer(user string, key ssh.PublicKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tried, a.user = true, user
	print := policy.Fingerprint(key)
	if len(a.keys) < maxLoggedKeys && !slices.Contains(a.keys, print) {
		a.keys = append(a.keys, print)
	}
}

func (a *authRecord) attempt(meta ssh.ConnMetadata, method string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tried, a.user = true, meta.User()
	if err != nil {
		a.reason = quotePeer(method) + ": " + err.Error()
	}
}

// loginFailed writes the one line about a connection that did not get in. The
// message "ssh login refused" followed by addr= is what fail2ban and its like look
// for; it stays as it is, and is not that of who showed a key that counts.
func (c *frontConn) loginFailed(err error) {
	if c.loggedIn.Load() {
		return // gone before it knew; its end is logged
	}
	a := &c.auth
	a.mu.Lock()
	defer a.mu.Unlock()
	defer c.penalise(c.offence(len(a.keys) > 0))
	line := append(c.where(), "client", quotePeer(c.ident))
	why := c.whyRefused(err)
	reason := quotePeer(why)
	if !a.tried {
		c.front.metrics.Login(metrics.LoginFailed)
		c.front.refusals.note(RefusedHandshake, slog.LevelInfo, "ssh handshake failed", append(line, "reason", reason)...)
		return
	}
	c.front.metrics.Login(metrics.LoginRefused)
	c.front.refusals.count(RefusedLogin)
	message := "ssh login refused"
	if c.isKnown() {
		message = "ssh login turned away"
	}
	c.front.log.Warn(message, append(line,
		"user", quotePeer(a.user), "keys", strings.Join(a.keys, ","), "reason", reason)...)
	c.loginRefused(why)
}

// whyRefused puts what ended the login before why its last attempt was refused.
// When the client just gave up there is only the latter. The caller holds the
// lock of auth.
func (c *frontConn) whyRefused(err error) string {
	ended, refused := c.reason(), c.auth.reason
	var gaveUp *ssh.ServerAuthError
	if ended == "" && (refused == "" || !errors.As(err, &gaveUp)) {
		ended = err.Error()
	}
	return strings.Join(slices.DeleteFunc([]string{ended, refused}, func(s string) bool { return s == "" }), "; ")
}
