package proxy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"
)

var (
	// keyExchanges are fast (no finite fields) and the first of them is safe
	// against a recording that a quantum computer reads later. Every OpenSSH since
	// 6.5, dropbear, PuTTY, libssh, paramiko and asyncssh of the last eight years has
	// one of them.
	keyExchanges = []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519}

	// macs matter for aes-ctr alone; the GCM ciphers and chacha20 bring their own.
	macs = []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM}

	ciphersGCM = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}

	ciphersAll = []string{
		ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
		ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
	}

	// userKeyAlgorithms leave out ssh-rsa, which signs with SHA-1, and ssh-dss.
	userKeyAlgorithms = []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
)

// cipherOffers are what clients may choose from. In SSH the client's order wins,
// and OpenSSH puts chacha20 first, then aes-ctr; a server that wants AES-GCM,
// which moves twice the bytes at half the CPU, must offer nothing else. It can
// afford that only towards clients that are known to have it.
type cipherOffers struct {
	openSSH []string // OpenSSH 6.2 and newer
	others  []string
}

// newCipherOffers honours an override, which then holds for every client.
func newCipherOffers(override []string) (cipherOffers, error) {
	for _, name := range override {
		if !slices.Contains(ciphersAll, name) {
			return cipherOffers{}, fmt.Errorf("cipher %q is not one of %q", name, ciphersAll)
		}
	}
	switch {
	case len(override) > 0:
		return cipherOffers{openSSH: override, others: override}, nil
	case hasFastAES():
		return cipherOffers{openSSH: ciphersGCM, others: ciphersAll}, nil
	}
	return cipherOffers{openSSH: ciphersAll, others: ciphersAll}, nil
}

func (o cipherOffers) forClient(ident string) []string {
	if knowsGCM(ident) {
		return o.openSSH
	}
	return o.others
}

var openSSHIdent = regexp.MustCompile(`^SSH-(?:2\.0|1\.99)-OpenSSH_(?:for_Windows_)?([0-9]{1,3})\.([0-9]{1,3})`)

// knowsGCM reports whether an identification line is that of OpenSSH 6.2, which
// brought aes128-gcm@openssh.com and aes256-gcm@openssh.com, or newer.
func knowsGCM(ident string) bool {
	m := openSSHIdent.FindStringSubmatch(ident)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 6 || major == 6 && minor >= 2
}

// hasFastAES reports whether crypto/aes has both AES and the multiplication of
// GCM in hardware here.
func hasFastAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 ||
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
		cpu.S390X.HasAES && cpu.S390X.HasAESGCM ||
		cpu.PPC64.IsPOWER8
}
