package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy"
)

const (
	// maxExplainBytes is the largest question: a derivation in base64, and what stands
	// beside it.
	maxExplainBytes = proxy.MaxDerivation/3*4 + 64<<10
	// maxPublicKeyBytes is the largest file with a public key or certificate.
	maxPublicKeyBytes = 64 << 10
)

type explainCmd struct {
	askFlags
	Principal string   `help:"Who wants the build, by the name in the policy." xor:"who" required:""`
	Key       string   `help:"Whose key it is: a .pub file, a certificate, or a fingerprint (SHA256:...)." xor:"who" required:""`
	Address   string   `help:"Where the key comes from, for from= and source-address."`
	System    string   `help:"The system that is required." xor:"what" required:""`
	Features  []string `help:"The features that are required."`
	Name      string   `help:"The derivation's name, by which rules and estimates go (default: that of the .drv file)."`
	Drv       string   `help:"A .drv file, which says system, features and name." xor:"what" required:"" type:"path"`
	Offline   bool     `help:"Ask no proxy: answer by the file of --config alone, as if every builder were up and idle."`
}

// Run prints whether somebody may have something built and where it would go, by a
// policy file or by the running proxy.
func (c explainCmd) Run(out io.Writer) error {
	q, err := c.question()
	if err != nil {
		return err
	}
	if c.Offline {
		return c.byPolicy(out, q)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("write the question: %w", err)
	}
	socket, err := c.socket()
	if err != nil {
		return err
	}
	var words []string
	if c.JSON {
		words = append(words, "--json")
	}
	ctx, stop := untilInterrupted()
	defer stop()
	return requestWith(ctx, out, socket, http.MethodPost, "explain", bytes.NewReader(body), words...)
}

func (c explainCmd) byPolicy(out io.Writer, q *proxy.Question) error {
	if c.Config == "" {
		return mistake(errors.New("--offline answers by a policy file: name it with --config FILE"))
	}
	pol, err := policy.Load(c.Config)
	if err != nil {
		return reportMistakes(err)
	}
	answer, err := proxy.ExplainBy(context.Background(), pol, q, c.JSON)
	if errors.As(err, new(*proxy.UsageError)) {
		return mistake(err)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, answer)
	return err
}

// question reads the files that are named.
func (c explainCmd) question() (*proxy.Question, error) {
	q := &proxy.Question{Principal: c.Principal, Address: c.Address, System: c.System, Features: c.Features, Name: c.Name}
	var err error
	if q.Key, err = readPublicKey(c.Key); err != nil {
		return nil, err
	}
	if c.Drv == "" {
		return q, nil
	}
	if q.Derivation, err = readLimited(c.Drv, proxy.MaxDerivation); err != nil {
		return nil, fmt.Errorf("read derivation: %w", err)
	}
	if q.Name == "" {
		q.Name = drvName(c.Drv)
	}
	return q, nil
}

// drvName is the name of a derivation by that of its file, in a store or elsewhere.
func drvName(file string) string {
	base := filepath.Base(file)
	if path, err := nix.ParseStorePathBase(base); err == nil {
		return path.DrvName()
	}
	return strings.TrimSuffix(base, ".drv")
}

// readPublicKey returns a fingerprint as it is, and the line of a file. A private key
// never leaves its file.
func readPublicKey(key string) (string, error) {
	if key == "" || strings.HasPrefix(key, "SHA256:") {
		return key, nil
	}
	text, err := readLimited(key, maxPublicKeyBytes)
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	line := strings.TrimSpace(string(text))
	switch {
	case strings.Contains(line, "PRIVATE KEY"):
		return "", fmt.Errorf("%s is a private key\nhint: name the public one: --key %s.pub", key, key)
	case strings.Contains(line, "\n"):
		return "", fmt.Errorf("%s has more than one line\nhint: name a file with one public key or certificate", key)
	}
	return line, nil
}

// readLimited reads a file that must not have more than limit bytes.
func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return text, err
}

// serveExplain answers a question that is the body of a request.
func (a *admin) serveExplain(w http.ResponseWriter, r *http.Request) {
	a.explaining.Lock()
	defer a.explaining.Unlock()
	question, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxExplainBytes))
	if err != nil {
		http.Error(w, fmt.Sprintf("the question was not read: %v", err), http.StatusBadRequest)
		return
	}
	words := append([]string{"explain", string(question)}, r.URL.Query()["word"]...)
	a.answer(w, r, words)
}
