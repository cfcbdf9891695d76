package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// infoJSON is a path info in any of the layouts 1 to 3, in which paths, content
// addresses and signatures are written differently. The fields of a cache file
// may be missing, as may those that a store alone knows.
type infoJSON struct {
	CA               json.RawMessage
	Deriver          *string
	NarHash          string
	NarSize          uint64
	References       []string
	RegistrationTime int64
	Signatures       []json.RawMessage
	Ultimate         bool
	Version          int

	URL, Compression, DownloadHash string
	DownloadSize                   uint64
}

func parseInfo(text []byte) (*infoJSON, *nix.NarInfo, error) {
	var j infoJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, nil, err
	}
	n := &nix.NarInfo{URL: j.URL, Compression: j.Compression, FileSize: j.DownloadSize}
	n.NarSize, n.RegistrationTime, n.Ultimate = j.NarSize, j.RegistrationTime, j.Ultimate
	var errs [4]error
	n.NarHash, errs[0] = nix.ParseHash(j.NarHash, nix.SHA256)
	n.CA, errs[1] = parseCA(j.CA)
	if j.DownloadHash != "" {
		n.FileHash, errs[2] = nix.ParseHash(j.DownloadHash, nix.SHA256)
	}
	if j.Deriver != nil {
		n.Deriver, errs[3] = parsePath(*j.Deriver)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, nil, err
	}
	for _, text := range j.References {
		p, err := parsePath(text)
		if err != nil {
			return nil, nil, err
		}
		n.References = append(n.References, p)
	}
	for _, text := range j.Signatures {
		sig, err := parseSignature(text)
		if err != nil {
			return nil, nil, err
		}
		n.Sigs = append(n.Sigs, sig)
	}
	return &j, n, nil
}

func parsePath(text string) (nix.StorePath, error) {
	if strings.HasPrefix(text, "/") {
		return nix.ParseStorePath(text)
	}
	return nix.ParseStorePathBase(text)
}

func parseCA(text json.RawMessage) (nix.ContentAddress, error) {
	if len(text) == 0 || string(text) == "null" {
		return nix.ContentAddress{}, nil
	}
	var s string
	if json.Unmarshal(text, &s) == nil {
		return nix.ParseContentAddress(s)
	}
	var j struct{ Method, Hash string }
	if err := json.Unmarshal(text, &j); err != nil {
		return nix.ContentAddress{}, err
	}
	hash, err := nix.ParseHash(j.Hash, 0)
	return nix.ContentAddress{Method: methodNamed(j.Method), Hash: hash}, err
}

func parseSignature(text json.RawMessage) (nix.Signature, error) {
	var s string
	if json.Unmarshal(text, &s) == nil {
		return nix.ParseSignature(s)
	}
	var j struct{ KeyName, Sig string }
	if err := json.Unmarshal(text, &j); err != nil {
		return nix.Signature{}, err
	}
	return nix.ParseSignature(j.KeyName + ":" + j.Sig)
}

// show makes the JSON of the layout, with the fields that the golden one has.
func (j *infoJSON) show(n *nix.NarInfo, golden []byte) (object, error) {
	o := pathInfoJSON(&n.PathInfo).(object)
	o["version"] = j.Version
	o["url"], o["compression"] = n.URL, n.Compression
	o["downloadHash"], o["downloadSize"] = n.FileHash.SRI(), n.FileSize
	if j.Version < 3 {
		o["signatures"] = texts(n.Sigs)
	}
	if j.Version < 2 {
		o["ca"] = orNull(n.CA, n.CA.String())
		o["deriver"] = orNull(n.Deriver, n.Deriver.String())
		refs := []string{}
		for _, p := range n.References {
			refs = append(refs, p.String())
		}
		o["references"] = refs
	}
	var has map[string]json.RawMessage
	if err := json.Unmarshal(golden, &has); err != nil {
		return nil, err
	}
	for key := range o {
		if _, ok := has[key]; !ok {
			delete(o, key)
		}
	}
	return o, nil
}

// checkPathInfoJSON takes a path info through the wire.
func checkPathInfoJSON(f *file) error {
	j, n, err := parseInfo(f.data)
	if err != nil {
		return err
	}
	info, err := throughWire(&n.PathInfo, (*worker.Codec).WritePathInfo, (*worker.Codec).ReadPathInfo)
	if err != nil {
		return err
	}
	n.PathInfo = *info
	o, err := j.show(n, f.data)
	if err != nil {
		return err
	}
	return sameJSON(o, f.data)
}

// throughWire writes a value and reads it again, with nothing left over.
func throughWire[T any](v T, write func(*worker.Codec, T), read func(*worker.Codec) T) (T, error) {
	var b bytes.Buffer
	c := worker.NewCodec(&b, &b, worker.Latest, worker.FeatureRealisationPaths)
	write(c, v)
	c.W.Flush()
	again := read(c)
	if c.R.Err() == nil && c.R.More() {
		return again, errors.New("bytes are left over on the wire")
	}
	return again, c.R.Err()
}

// checkNarInfoJSON takes it through the text of a .narinfo file, which does not
// have what a store alone knows.
func checkNarInfoJSON(f *file) error {
	j, n, err := parseInfo(f.data)
	if err != nil {
		return err
	}
	n.Path = n.References[0] // the JSON does not say
	if n.URL == "" {
		n.URL, n.Compression = "nar/x.nar", "none"
	}
	again, err := nix.ParseNarInfo(n.String())
	if err != nil {
		return err
	}
	again.RegistrationTime, again.Ultimate = n.RegistrationTime, n.Ultimate
	o, err := j.show(again, f.data)
	if err != nil {
		return err
	}
	if err := sameJSON(o, f.data); err != nil {
		return err
	}
	return sameBytes([]byte(again.String()), []byte(n.String()))
}

// checkBuildResultJSON takes a result of the newest form through the wire.
func checkBuildResultJSON(f *file) error {
	var j struct {
		Status              string
		ErrorMsg            string
		IsNonDeterministic  bool
		TimesBuilt          uint32
		StartTime, StopTime int64
		CPUUser             *int64 `json:"cpuUser"`
		CPUSystem           *int64 `json:"cpuSystem"`
		BuiltOutputs        map[string]struct {
			OutPath    string
			Signatures []json.RawMessage
		}
	}
	if err := json.Unmarshal(f.data, &j); err != nil {
		return err
	}
	r := &nix.BuildResult{
		ErrorMsg: j.ErrorMsg, IsNonDeterministic: j.IsNonDeterministic, TimesBuilt: j.TimesBuilt,
		StartTime: j.StartTime, StopTime: j.StopTime, CPUUser: j.CPUUser, CPUSystem: j.CPUSystem,
	}
	for r.Status = 0; r.Status.String() != j.Status; r.Status++ {
		if r.Status > nix.StatusHashMismatch {
			return fmt.Errorf("unknown status %q", j.Status)
		}
	}
	for _, name := range sortedKeys(j.BuiltOutputs) {
		p, err := nix.ParseStorePathBase(j.BuiltOutputs[name].OutPath)
		if err != nil {
			return err
		}
		out := nix.BuiltOutput{Name: name, Path: p}
		for _, text := range j.BuiltOutputs[name].Signatures {
			sig, err := parseSignature(text)
			if err != nil {
				return err
			}
			out.Sigs = append(out.Sigs, sig.String())
		}
		r.Outputs = append(r.Outputs, out)
	}
	again, err := throughWire(r, (*worker.Codec).WriteBuildResult, (*worker.Codec).ReadBuildResult)
	if err != nil {
		return err
	}
	return sameJSON(buildResultJSON(again), f.data)
}

func checkContentAddressJSON(f *file) error {
	ca, err := parseCA(f.data)
	if err != nil {
		return err
	}
	again, err := nix.ParseContentAddress(ca.String())
	if err != nil {
		return err
	}
	return sameJSON(contentAddressJSON(again), f.data)
}

func checkStorePathJSON(f *file) error {
	var base string
	if err := json.Unmarshal(f.data, &base); err != nil {
		return err
	}
	p, err := nix.ParseStorePathBase(base)
	if err != nil {
		return err
	}
	again, err := nix.ParseStorePath(p.String())
	if err != nil {
		return err
	}
	return sameJSON(again.Base(), f.data)
}

// checkTargetJSON reads a derived path and takes it through its wire form.
func checkTargetJSON(f *file) error {
	var j struct {
		DrvPath string
		Output  string
		Outputs []string
	}
	if json.Unmarshal(f.data, new(string)) == nil {
		return checkStorePathJSON(f)
	}
	if err := json.Unmarshal(f.data, &j); err != nil {
		return err
	}
	outputs := strings.Join(j.Outputs, ",")
	if j.Outputs == nil {
		outputs = j.Output
	}
	target, err := nix.ParseDerivedPath(nix.StoreDir + "/" + j.DrvPath + "!" + outputs)
	if err != nil {
		return err
	}
	again, err := nix.ParseDerivedPath(target.String())
	if err != nil {
		return err
	}
	o := targetJSON(again).(object)
	if j.Outputs == nil {
		o = object{"drvPath": again.Path.Base(), "output": again.Outputs[0]}
	}
	return sameJSON(o, f.data)
}

// checkNestedTarget is for outputs of outputs, which must be refused.
func checkNestedTarget(f *file) error {
	var j struct {
		DrvPath struct{ DrvPath, Output string }
		Output  string
		Outputs []string
	}
	if err := json.Unmarshal(f.data, &j); err != nil {
		return err
	}
	text := nix.StoreDir + "/" + j.DrvPath.DrvPath + "!" + j.DrvPath.Output + "!" + j.Output + strings.Join(j.Outputs, ",")
	if _, err := nix.ParseDerivedPath(text); err == nil {
		return fmt.Errorf("%s is accepted", text)
	}
	return nil
}

// checkOutputsSpec asks a derivation for the outputs.
func checkOutputsSpec(f *file) error {
	var outputs []string
	if err := json.Unmarshal(f.data, &outputs); err != nil {
		return err
	}
	drv := nix.StoreDir + "/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv"
	target, err := nix.ParseDerivedPath(drv + "!" + strings.Join(outputs, ","))
	if err != nil {
		return err
	}
	return sameJSON(targetJSON(target).(object)["outputs"], f.data)
}

func checkFingerprint(f *file) error {
	text, err := f.sibling(strings.TrimSuffix(f.stem(), "-fingerprint") + ".json")
	if err != nil {
		return err
	}
	r, err := nix.ParseRealisationJSON(string(text))
	if err != nil {
		return err
	}
	return sameBytes([]byte(r.Fingerprint()), bytes.TrimSuffix(f.data, []byte("\n")))
}

func checkSignatureJSON(f *file) error {
	sig, err := parseSignature(f.data)
	if err != nil {
		return err
	}
	return sameJSON(signaturesJSON([]string{sig.String()})[0], f.data)
}

// checkRealisationJSON compares the text too, but for its spaces.
func checkRealisationJSON(f *file) error {
	r, err := nix.ParseRealisationJSON(string(f.data))
	if err != nil {
		return err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, f.data); err != nil {
		return err
	}
	want := objectSignature.ReplaceAllString(compact.String(), `"$1:$2"`)
	return sameBytes([]byte(nix.RealisationJSON(r)), []byte(strings.TrimSpace(want)))
}

func checkUnkeyedRealisation(f *file) error {
	key := `{"drvPath":"g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x.drv","outputName":"out"}`
	r, err := nix.ParseRealisationJSON(fmt.Sprintf(`{"key":%s,"value":%s}`, key, f.data))
	if err != nil {
		return err
	}
	again, err := throughWire(r, (*worker.Codec).WriteFoundRealisation, (*worker.Codec).ReadFoundRealisation)
	if err != nil {
		return err
	}
	return sameJSON(unkeyedRealisationJSON(*again), f.data)
}

func checkHash(f *file) error {
	var text string
	if err := json.Unmarshal(f.data, &text); err != nil {
		return err
	}
	hash, err := nix.ParseHash(text, 0)
	if err != nil {
		return err
	}
	return sameJSON(hash.SRI(), f.data)
}

// checkRefusedHash is for algorithms that are experimental in Nix.
func checkRefusedHash(f *file) error {
	if checkHash(f) == nil {
		return errors.New("it is accepted")
	}
	return nil
}
