package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

type keyCmd struct {
	Generate keyGenerateCmd `cmd:"" help:"Make a key that signs store paths, for signing_keys in the policy."`
	Public   keyPublicCmd   `cmd:"" help:"Print the public key of a secret key file."`
}

type keyGenerateCmd struct {
	Name string `arg:"" help:"The key's name, which signatures and public keys begin with; another one for each key, as nix.example.org-1."`
	Out  string `help:"The file to make; by default the name with .secret behind it, here." type:"path"`
}

// keyMode lets nobody but its owner use a secret key.
const keyMode = 0o600

// Run makes a key and says what to do with it. No file is ever written over.
func (c keyGenerateCmd) Run(out io.Writer) error {
	key, err := nix.GenerateSigningKey(c.Name)
	if err != nil {
		return err
	}
	file := c.Out
	if file == "" {
		file, err = defaultKeyFile(c.Name)
	}
	if err != nil {
		return err
	}
	if err := writeNew(file, key.Secret()); err != nil {
		return fmt.Errorf("make key %s: %w", c.Name, err)
	}
	public := key.Public().String()
	_, err = fmt.Fprintf(out, "The secret key is in %s. Its public key:\n  %s\n\n"+
		"In the proxy's policy, at the domain that signs with it (the proxy's account must be able to read the file):\n  signing_keys: [%[1]s]\n\n"+
		"In /etc/nix/nix.conf of clients that trust what is signed with it:\n  %[3]s\n",
		file, public, policy.TrustedKeysLine([]string{public}))
	return err
}

func defaultKeyFile(name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return "", fmt.Errorf("the name %q is no name of a file; say --out FILE", name)
	}
	return filepath.Abs(name + ".secret")
}

// writeNew makes a file that was not there and that only we can read.
func writeNew(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, keyMode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already and stays as it is", name)
	}
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

type keyPublicCmd struct {
	File string `arg:"" help:"The secret key, as key generate or nix-store --generate-binary-cache-key makes it." type:"path"`
}

// maxKeyFile is far above the size of any key, in bytes.
const maxKeyFile = 4 << 10

// Run prints the public key alone, so that a script can use it.
func (c keyPublicCmd) Run(out io.Writer) error {
	file, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile))
	if err != nil {
		return err
	}
	key, err := nix.ParseSigningKey(string(text))
	if err != nil {
		return fmt.Errorf("read %s: %w", c.File, err)
	}
	_, err = fmt.Fprintln(out, key.Public())
	return err
}
