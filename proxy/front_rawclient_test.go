package proxy

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Message numbers of RFC 4250, 4.1.2.
const (
	msgDisconnect     = 1
	msgServiceRequest = 5
	msgServiceAccept  = 6
	msgExtInfo        = 7
	msgKexInit        = 20
	msgNewKeys        = 21
	msgKexECDHInit    = 30
	msgKexECDHReply   = 31
	msgAuthRequest    = 50
	msgAuthFailure    = 51
	msgAuthSuccess    = 52
	msgAuthBanner     = 53
	msgAuthPKOK       = 60
	msgGlobalRequest  = 80
	msgChannelOpen    = 90
	msgOpenConfirm    = 91
	msgOpenFailure    = 92
)

// rawClient speaks SSH message by message, so that it can say what no library
// would: curve25519-sha256, aes128-gcm and an ed25519 host key whose signature it
// does not look at.
type rawClient struct {
	conn    net.Conn
	in      *bufio.Reader
	session []byte // the first exchange hash
	offer   kexInit
	sealed  bool // keys are in use
	send    *gcmKey
	recv    *gcmKey
}

// kexInit is SSH_MSG_KEXINIT of RFC 4253, 7.1.
type kexInit struct {
	Cookie                  [16]byte `sshtype:"20"`
	KexAlgos                []string
	HostKeyAlgos            []string
	CiphersClientServer     []string
	CiphersServerClient     []string
	MACsClientServer        []string
	MACsServerClient        []string
	CompressionClientServer []string
	CompressionServerClient []string
	LanguagesClientServer   []string
	LanguagesServerClient   []string
	FirstKexFollows         bool
	Reserved                uint32
}

type gcmKey struct {
	aead  cipher.AEAD
	nonce []byte
}

const rawIdent = "SSH-2.0-raw"

// newRawClient makes the key exchange under an identification line.
func newRawClient(t testing.TB, conn net.Conn, ident string) *rawClient {
	t.Helper()
	c, err := dialRaw(conn, ident)
	if err != nil {
		t.Fatalf("key exchange: %v", err)
	}
	return c
}

func dialRaw(conn net.Conn, ident string) (*rawClient, error) {
	c := &rawClient{conn: conn, in: bufio.NewReader(conn)}
	if err := c.exchange(ident); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *rawClient) exchange(ident string) error {
	if _, err := fmt.Fprintf(c.conn, "%s\r\n", ident); err != nil {
		return err
	}
	mine := kexInit{
		KexAlgos: []string{"curve25519-sha256"}, HostKeyAlgos: []string{"ssh-ed25519"},
		CiphersClientServer: []string{"aes128-gcm@openssh.com"}, CiphersServerClient: []string{"aes128-gcm@openssh.com"},
		MACsClientServer: []string{"hmac-sha2-256-etm@openssh.com"}, MACsServerClient: []string{"hmac-sha2-256-etm@openssh.com"},
		CompressionClientServer: []string{"none"}, CompressionServerClient: []string{"none"},
	}
	myInit := ssh.Marshal(&mine)
	if err := c.write(myInit); err != nil { // before the server has said anything, as many clients do
		return err
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	server := strings.TrimRight(line, "\r\n")
	theirInit, err := c.read()
	if err != nil {
		return err
	}
	if err := ssh.Unmarshal(theirInit, &c.offer); err != nil {
		return err
	}
	return c.keys(ident, server, myInit, theirInit)
}

func (c *rawClient) keys(ident, server string, myInit, theirInit []byte) error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public := key.PublicKey().Bytes()
	err = c.write(ssh.Marshal(struct {
		Public []byte `sshtype:"30"`
	}{public}))
	if err != nil {
		return err
	}
	packet, err := c.read()
	if err != nil {
		return err
	}
	var reply struct {
		HostKey   []byte `sshtype:"31"`
		Public    []byte
		Signature []byte
	}
	if err := ssh.Unmarshal(packet, &reply); err != nil {
		return err
	}
	peer, err := ecdh.X25519().NewPublicKey(reply.Public)
	if err != nil {
		return err
	}
	secret, err := key.ECDH(peer)
	if err != nil {
		return err
	}
	k := ssh.Marshal(struct{ K *big.Int }{new(big.Int).SetBytes(secret)})
	hash := sha256.New()
	for _, part := range [][]byte{[]byte(ident), []byte(server), myInit, theirInit, reply.HostKey, public, reply.Public} {
		hash.Write(ssh.Marshal(struct{ B []byte }{part}))
	}
	hash.Write(k)
	c.session = hash.Sum(nil)
	if err := c.write([]byte{msgNewKeys}); err != nil {
		return err
	}
	if packet, err = c.read(); err != nil || packet[0] != msgNewKeys {
		return fmt.Errorf("expected new keys, got %v (%w)", packet, err)
	}
	c.send, c.recv = c.deriveKey(k, 'A', 'C'), c.deriveKey(k, 'B', 'D')
	c.sealed = true
	return nil
}

func (c *rawClient) deriveKey(k []byte, nonceTag, keyTag byte) *gcmKey {
	derive := func(tag byte, size int) []byte {
		sum := sha256.Sum256(bytes.Join([][]byte{k, c.session, {tag}, c.session}, nil))
		return sum[:size]
	}
	block, err := aes.NewCipher(derive(keyTag, 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &gcmKey{aead, derive(nonceTag, 12)}
}

func (k *gcmKey) next() {
	binary.BigEndian.PutUint64(k.nonce[4:], binary.BigEndian.Uint64(k.nonce[4:])+1)
}

// write sends one message.
func (c *rawClient) write(payload []byte) error {
	block, extra := 8, 4
	if c.sealed {
		block, extra = 16, 0
	}
	pad := block - (extra+1+len(payload))%block
	if pad < 4 {
		pad += block
	}
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+pad))
	packet = append(packet, byte(pad))
	packet = append(packet, payload...)
	packet = append(packet, make([]byte, pad)...)
	if c.sealed {
		packet = c.send.aead.Seal(packet[:4:4], c.send.nonce, packet[4:], packet[:4])
		c.send.next()
	}
	_, err := c.conn.Write(packet)
	return err
}

// read returns the next message that is not about the transport alone.
func (c *rawClient) read() ([]byte, error) {
	for {
		payload, err := c.readAny()
		if err != nil {
			return nil, err
		}
		switch payload[0] {
		case 2, 3, 4, msgExtInfo: // ignore, unimplemented, debug
			continue
		case msgDisconnect:
			return nil, fmt.Errorf("disconnected: %q", payload[5:])
		}
		return payload, nil
	}
}

func (c *rawClient) readAny() ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(c.in, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 2 || n > 256<<10 {
		return nil, fmt.Errorf("packet of %d bytes", n)
	}
	if c.sealed {
		n += 16
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	if c.sealed {
		var err error
		if body, err = c.recv.aead.Open(body[:0], c.recv.nonce, body, head); err != nil {
			return nil, err
		}
		c.recv.next()
	}
	if int(body[0])+1 >= len(body) {
		return nil, errors.New("padding longer than packet")
	}
	return body[1 : len(body)-int(body[0])], nil
}

// startAuth asks for the authentication service.
func (c *rawClient) startAuth(t testing.TB) {
	t.Helper()
	c.must(t, struct {
		Service string `sshtype:"5"`
	}{"ssh-userauth"})
	if reply := c.next(t); reply[0] != msgServiceAccept {
		t.Fatalf("service request answered with message %d", reply[0])
	}
}

// channelEnd is end of file (96) or close (97) of a channel.
type channelEnd struct {
	kind    byte
	channel uint32
}

// must sends a message.
func (c *rawClient) must(t testing.TB, msg any) {
	t.Helper()
	packet, ok := msg.(channelEnd)
	bytes := binary.BigEndian.AppendUint32([]byte{packet.kind}, packet.channel)
	if !ok {
		bytes = ssh.Marshal(msg)
	}
	if err := c.write(bytes); err != nil {
		t.Fatalf("send %T: %v", msg, err)
	}
}

// next receives a message.
func (c *rawClient) next(t testing.TB) []byte {
	t.Helper()
	packet, err := c.read()
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return packet
}

type authRequest struct {
	User    string `sshtype:"50"`
	Service string
	Method  string
	Rest    []byte `ssh:"rest"`
}

// auth makes an attempt and returns the answer.
func (c *rawClient) auth(t testing.TB, user, method string, rest []byte) []byte {
	t.Helper()
	c.must(t, &authRequest{User: user, Service: "ssh-connection", Method: method, Rest: rest})
	return c.next(t)
}

// offerOf asks whether a key would do.
func offerOf(user string, key ssh.PublicKey) *authRequest {
	return &authRequest{User: user, Service: "ssh-connection", Method: "publickey", Rest: ssh.Marshal(struct {
		Signed bool
		Algo   string
		Key    []byte
	}{false, key.Type(), key.Marshal()})}
}

// offerKey returns the answer to an offer.
func (c *rawClient) offerKey(t testing.TB, user string, key ssh.PublicKey) []byte {
	t.Helper()
	c.must(t, offerOf(user, key))
	return c.next(t)
}

// signIn makes an attempt for a user with a public key, signed by a signer, which
// need not be its owner.
func (c *rawClient) signIn(t testing.TB, user string, key ssh.PublicKey, signer ssh.Signer) []byte {
	t.Helper()
	c.must(t, c.signedRequest(user, key, signer))
	return c.next(t)
}

func (c *rawClient) signedRequest(user string, key ssh.PublicKey, signer ssh.Signer) *authRequest {
	head := ssh.Marshal(struct {
		Signed bool
		Algo   string
		Key    []byte
	}{true, key.Type(), key.Marshal()})
	req := &authRequest{User: user, Service: "ssh-connection", Method: "publickey", Rest: head}
	signed := append(ssh.Marshal(struct{ Session []byte }{c.session}), ssh.Marshal(req)...)
	sig, err := signer.Sign(rand.Reader, signed)
	if err != nil {
		panic(err)
	}
	req.Rest = append(head, ssh.Marshal(struct{ Sig []byte }{ssh.Marshal(sig)})...)
	return req
}

// methods are those that a refusal names.
func methods(t testing.TB, packet []byte) []string {
	t.Helper()
	var failure struct {
		Methods []string `sshtype:"51"`
		Partial bool
	}
	if err := ssh.Unmarshal(packet, &failure); err != nil {
		t.Fatalf("expected a refusal, got message %d: %v", packet[0], err)
	}
	return failure.Methods
}
