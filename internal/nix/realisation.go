package nix

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// DrvOutput names an output of a derivation: by the derivation's hash for peers
// without the feature realisation-with-path-not-hash, else by its path.
type DrvOutput struct {
	DrvHash string // "sha256:<64 hex>", or ""
	DrvPath StorePath
	Output  string
}

// Realisation binds an output of a derivation to a path.
type Realisation struct {
	ID      DrvOutput
	OutPath StorePath
	// Sigs are "name:base64". What they cover differs between the two kinds of
	// ID, so they mean nothing once a realisation has changed from one to the other.
	Sigs []string
	// Dependents are the realisations that this one rests on, by the old form of
	// their ids. Only Nix before 2.34 writes any, and its signatures cover them.
	Dependents map[string]StorePath
}

// ParseDrvOutput parses the old form of an id, "sha256:<digest>!<output>". The
// digest becomes hex, whatever it was written in.
func ParseDrvOutput(s string) (DrvOutput, error) {
	digest, output, ok := strings.Cut(s, "!")
	if !ok {
		return DrvOutput{}, fmt.Errorf("derivation output %q: no '!'", clip(s))
	}
	hash, err := ParseHash(digest, 0)
	if err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output: %w", err)
	}
	if err := CheckName(output); err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output %q: %w", clip(s), err)
	}
	return DrvOutput{DrvHash: DrvHash(hash), Output: output}, nil
}

// DrvHash writes a hash as DrvOutput.DrvHash holds it.
func DrvHash(h Hash) string { return h.Algo().String() + ":" + h.Base16() }

// String returns the old form of an id that has a hash, and
// "<derivation>^<output>" of one that has a path.
func (o DrvOutput) String() string {
	if o.DrvHash != "" {
		return o.DrvHash + "!" + o.Output
	}
	return o.DrvPath.String() + "^" + o.Output
}

// The JSON forms. Fields are in the order of their names, as Nix writes them.
type (
	oldRealisationJSON struct {
		Dependents map[string]string `json:"dependentRealisations"`
		ID         string            `json:"id"`
		OutPath    string            `json:"outPath"`
		Signatures *signaturesJSON   `json:"signatures,omitempty"`
	}
	newRealisationJSON struct {
		Key   drvOutputJSON   `json:"key"`
		Value realisationJSON `json:"value"`
	}
	drvOutputJSON struct {
		DrvPath string `json:"drvPath"`
		Output  string `json:"outputName"`
	}
	realisationJSON struct {
		OutPath    string          `json:"outPath"`
		Signatures *signaturesJSON `json:"signatures,omitempty"`
	}
)

// signaturesJSON reads signatures as strings and, as Nix 2.34 and newer write
// them, as objects. It writes strings: every version reads those.
type signaturesJSON []string

func (s *signaturesJSON) UnmarshalJSON(data []byte) error {
	var elements []json.RawMessage
	if err := json.Unmarshal(data, &elements); err != nil {
		return err
	}
	*s = make([]string, len(elements))
	for i, e := range elements {
		if json.Unmarshal(e, &(*s)[i]) == nil {
			continue
		}
		var object struct{ KeyName, Sig string }
		if err := json.Unmarshal(e, &object); err != nil {
			return err
		}
		(*s)[i] = object.KeyName + ":" + object.Sig
	}
	return nil
}

// ParseRealisationJSON parses a realisation in either JSON form: the old one
// with "id", which the protocols carry, or the newer with "key" and "value".
func ParseRealisationJSON(text string) (*Realisation, error) {
	r, err := parseRealisationJSON([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("realisation %q: %w", clip(text), err)
	}
	return r, nil
}

func parseRealisationJSON(data []byte) (*Realisation, error) {
	var form struct {
		oldRealisationJSON
		Key   *drvOutputJSON
		Value *realisationJSON
	}
	if err := json.Unmarshal(data, &form); err != nil {
		return nil, err
	}
	switch {
	case form.Key != nil && form.Value != nil:
		return newRealisation(form.Key, form.Value)
	case form.ID != "":
		return oldRealisation(&form.oldRealisationJSON)
	default:
		return nil, errors.New(`neither "id" nor "key" and "value"`)
	}
}

func oldRealisation(form *oldRealisationJSON) (*Realisation, error) {
	id, err := ParseDrvOutput(form.ID)
	if err != nil {
		return nil, err
	}
	r := &Realisation{ID: id, Sigs: form.Signatures.strings()}
	if r.OutPath, err = ParseStorePathBase(form.OutPath); err != nil {
		return nil, err
	}
	for id, base := range form.Dependents {
		path, err := ParseStorePathBase(base)
		if err != nil {
			return nil, err
		}
		if r.Dependents == nil {
			r.Dependents = make(map[string]StorePath)
		}
		r.Dependents[id] = path
	}
	return r, nil
}

func newRealisation(key *drvOutputJSON, value *realisationJSON) (*Realisation, error) {
	drv, err := ParseStorePathBase(key.DrvPath)
	if err != nil {
		return nil, err
	}
	if err := CheckName(key.Output); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	out, err := ParseStorePathBase(value.OutPath)
	if err != nil {
		return nil, err
	}
	id := DrvOutput{DrvPath: drv, Output: key.Output}
	return &Realisation{ID: id, OutPath: out, Sigs: value.Signatures.strings()}, nil
}

func (s *signaturesJSON) strings() []string {
	if s == nil {
		return nil
	}
	return *s
}

// RealisationJSON writes a realisation as JSON, compact and with sorted keys: in
// the old form if its id has a hash, else in the newer one.
func RealisationJSON(r *Realisation) string {
	sigs := signaturesJSON(r.Sigs)
	if sigs == nil {
		sigs = signaturesJSON{}
	}
	return r.marshal(&sigs)
}

// Fingerprint returns the text that a signature of the realisation covers: its
// JSON without the signatures.
func (r *Realisation) Fingerprint() string { return r.marshal(nil) }

func (r *Realisation) marshal(sigs *signaturesJSON) string {
	if r.ID.DrvHash == "" {
		return marshalJSON(newRealisationJSON{
			Key:   drvOutputJSON{DrvPath: r.ID.DrvPath.Base(), Output: r.ID.Output},
			Value: realisationJSON{OutPath: r.OutPath.Base(), Signatures: sigs},
		})
	}
	dependents := make(map[string]string, len(r.Dependents))
	for id, path := range r.Dependents {
		dependents[id] = path.Base()
	}
	return marshalJSON(oldRealisationJSON{
		Dependents: dependents, ID: r.ID.String(), OutPath: r.OutPath.Base(), Signatures: sigs,
	})
}

// marshalJSON writes like Nix: without a newline and without the escapes that
// are only needed inside HTML.
func marshalJSON(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // only structs of strings come here
	}
	return strings.TrimSuffix(b.String(), "\n")
}
