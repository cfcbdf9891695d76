package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"nixbastion/internal/nix"
)

// drvJSON is Nix's JSON form of a derivation, layout 4.
type drvJSON struct {
	Args            []string              `json:"args"`
	Builder         string                `json:"builder"`
	Env             map[string]string     `json:"env"`
	Inputs          inputsJSON            `json:"inputs"`
	Name            string                `json:"name"`
	Outputs         map[string]outputJSON `json:"outputs"`
	StructuredAttrs json.RawMessage       `json:"structuredAttrs,omitempty"`
	System          string                `json:"system"`
	Version         int                   `json:"version"`
}

// inputsJSON is a list of paths where a derivation has been resolved, so that no
// derivations are among its inputs any more.
type inputsJSON struct {
	Drvs map[string]inputJSON `json:"drvs"`
	Srcs []string             `json:"srcs"`
}

func (in *inputsJSON) UnmarshalJSON(text []byte) error {
	if json.Unmarshal(text, &in.Srcs) == nil {
		return nil
	}
	type plain inputsJSON
	return json.Unmarshal(text, (*plain)(in))
}

type inputJSON struct {
	Dynamic map[string]any `json:"dynamicOutputs"`
	Outputs []string       `json:"outputs"`
}

type outputJSON struct {
	Path     string `json:"path,omitempty"`
	Hash     string `json:"hash,omitempty"`
	HashAlgo string `json:"hashAlgo,omitempty"`
	Method   string `json:"method,omitempty"`
	Impure   bool   `json:"impure,omitempty"`
}

const structuredVar = "__json"

func showDrv(name string, drv *nix.Derivation) (*drvJSON, error) {
	j := &drvJSON{
		Args: orEmpty(drv.Args), Builder: drv.Builder, System: drv.Platform, Name: name, Version: 4,
		Env: map[string]string{}, Outputs: map[string]outputJSON{},
	}
	j.Inputs.Srcs, j.Inputs.Drvs = bases(drv.InputSrcs), map[string]inputJSON{}
	for _, in := range drv.InputDrvs {
		j.Inputs.Drvs[in.Path.Base()] = inputJSON{Dynamic: map[string]any{}, Outputs: in.Outputs}
	}
	for _, v := range drv.Env {
		if v.Name == structuredVar {
			j.StructuredAttrs = json.RawMessage(v.Value)
		} else {
			j.Env[v.Name] = v.Value
		}
	}
	for _, o := range drv.Outputs {
		out, err := showOutput(o)
		if err != nil {
			return nil, err
		}
		j.Outputs[o.Name] = out
	}
	return j, nil
}

func showOutput(o nix.DerivationOutput) (outputJSON, error) {
	kind, err := o.Kind()
	if err != nil || kind == nix.Deferred {
		return outputJSON{}, err
	}
	if kind == nix.InputAddressed {
		return outputJSON{Path: o.Path.Base()}, nil
	}
	method, err := nix.ParseOutputMethod(o.HashAlgo)
	if err != nil {
		return outputJSON{}, err
	}
	out := outputJSON{Method: methodNames[method.Method], HashAlgo: method.Algo.String(), Impure: kind == nix.Impure}
	if kind == nix.FixedOutput {
		ca, err := o.ContentAddress()
		return outputJSON{Method: out.Method, Hash: ca.Hash.SRI()}, err
	}
	return out, nil
}

func (j *drvJSON) derivation() (*nix.Derivation, error) {
	drv := &nix.Derivation{BasicDerivation: nix.BasicDerivation{Platform: j.System, Builder: j.Builder, Args: j.Args}}
	for _, base := range j.Inputs.Srcs {
		p, err := nix.ParseStorePathBase(base)
		if err != nil {
			return nil, err
		}
		drv.InputSrcs = append(drv.InputSrcs, p)
	}
	for _, base := range sortedKeys(j.Inputs.Drvs) {
		p, err := nix.ParseStorePathBase(base)
		if err != nil {
			return nil, err
		}
		drv.InputDrvs = append(drv.InputDrvs, nix.InputDrv{Path: p, Outputs: j.Inputs.Drvs[base].Outputs})
	}
	env := j.Env
	if j.StructuredAttrs != nil {
		var compact bytes.Buffer
		if err := json.Compact(&compact, j.StructuredAttrs); err != nil {
			return nil, err
		}
		env[structuredVar] = compact.String()
	}
	for _, name := range sortedKeys(env) {
		drv.Env = append(drv.Env, nix.EnvVar{Name: name, Value: env[name]})
	}
	for _, name := range sortedKeys(j.Outputs) {
		o, err := j.Outputs[name].output(j.Name, name)
		if err != nil {
			return nil, err
		}
		drv.Outputs = append(drv.Outputs, o)
	}
	return drv, nil
}

func (j outputJSON) output(drvName, name string) (nix.DerivationOutput, error) {
	o := nix.DerivationOutput{Name: name}
	var err error
	if j.Path != "" {
		o.Path, err = nix.ParseStorePathBase(j.Path)
		return o, err
	}
	if j.Method == "" {
		return o, nil
	}
	method := nix.ContentAddressMethod{Method: methodNamed(j.Method)}
	if j.Hash == "" {
		method.Algo, err = nix.ParseHashAlgo(j.HashAlgo)
		o.HashAlgo = method.OutputString()
		if j.Impure {
			o.Hash = "impure"
		}
		return o, err
	}
	hash, err := nix.ParseHash(j.Hash, 0)
	if err != nil {
		return o, err
	}
	method.Algo = hash.Algo()
	o.HashAlgo, o.Hash = method.OutputString(), hash.Base16()
	pathName := drvName
	if name != "out" {
		pathName += "-" + name
	}
	o.Path, err = nix.ContentAddressedPath(pathName, nix.ContentAddress{Method: method.Method, Hash: hash}, nil, false)
	return o, err
}

func methodNamed(name string) nix.IngestionMethod {
	for m, n := range methodNames {
		if n == name {
			return m
		}
	}
	return 0
}

// drvName is what the JSON beside a .drv says, or its file's name.
func drvName(f *file) string {
	var j drvJSON
	if text, err := f.other(".json"); err == nil && json.Unmarshal(text, &j) == nil && j.Name != "" {
		return j.Name
	}
	return f.stem()
}

func checkDrv(f *file) error {
	name := drvName(f)
	drv, err := nix.ParseDerivation(name, f.data)
	if err != nil {
		return err
	}
	if err := sameBytes([]byte(drv.ATerm()), f.data); err != nil {
		return err
	}
	text, err := f.other(".json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := compareDrv(name, drv, text); err != nil {
		return err
	}
	return printsAs(text, f.data)
}

// compareDrv takes the two layouts of inputs for the same, and structured
// attributes that are in the environment too for having been lifted out of it.
func compareDrv(name string, drv *nix.Derivation, want []byte) error {
	j, err := showDrv(name, drv)
	if err != nil {
		return err
	}
	var golden drvJSON
	dec := json.NewDecoder(bytes.NewReader(want))
	dec.DisallowUnknownFields() // or what this does not know would not be compared
	if err := dec.Decode(&golden); err != nil {
		return err
	}
	if golden.Inputs.Drvs == nil {
		golden.Inputs.Drvs = map[string]inputJSON{}
	}
	if golden.StructuredAttrs != nil {
		delete(golden.Env, structuredVar)
	}
	text, err := json.Marshal(golden)
	if err != nil {
		return err
	}
	return sameJSON(j, text)
}

// printsAs goes the way back: from the JSON to the text.
func printsAs(text, want []byte) error {
	drv, _, err := drvFromJSON(text)
	if err != nil {
		return err
	}
	return sameBytes([]byte(drv.ATerm()), want)
}

func drvFromJSON(text []byte) (*nix.Derivation, string, error) {
	var j drvJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, "", err
	}
	drv, err := j.derivation()
	return drv, j.Name, err
}

// checkDrvJSON prints a derivation of which there is JSON alone, and reads it again.
func checkDrvJSON(f *file) error {
	drv, name, err := drvFromJSON(f.data)
	if err != nil {
		return err
	}
	again, err := nix.ParseDerivation(name, []byte(drv.ATerm()))
	if err != nil {
		return err
	}
	return compareDrv(name, again, f.data)
}

func checkRefusedDrv(f *file) error {
	if _, err := nix.ParseDerivation(f.stem(), f.data); err == nil {
		return errors.New("it is accepted")
	}
	return nil
}

var (
	inputDrvTuple = regexp.MustCompile(`\("/nix/store/[^"]*\.drv",\[[^\]]*\]\)`)
	inputSrcList  = regexp.MustCompile(`\],\[("/nix/store/[^\]]*)\],`)
)

// checkUnsortedDrv is for a derivation whose hashes were replaced by hand, after
// which it is no longer in the order in which Nix writes: it must be refused as
// it is, and read when it is put in order.
func checkUnsortedDrv(f *file) error {
	if err := checkRefusedDrv(f); err != nil {
		return err
	}
	tuples := inputDrvTuple.FindAllString(string(f.data), -1)
	first := strings.Index(string(f.data), tuples[0])
	last := strings.LastIndex(string(f.data), tuples[len(tuples)-1]) + len(tuples[len(tuples)-1])
	slices.Sort(tuples)
	sorted := string(f.data[:first]) + strings.Join(tuples, ",") + string(f.data[last:])
	if at := inputSrcList.FindStringSubmatchIndex(sorted); at != nil {
		srcs := strings.Split(sorted[at[2]:at[3]], ",")
		slices.Sort(srcs)
		sorted = sorted[:at[2]] + strings.Join(srcs, ",") + sorted[at[3]:]
	}
	drv, err := nix.ParseDerivation(f.stem(), []byte(sorted))
	if err != nil {
		return err
	}
	return sameBytes([]byte(drv.ATerm()), []byte(sorted))
}

func checkOutputJSON(f *file) error {
	var j outputJSON
	if err := json.Unmarshal(f.data, &j); err != nil {
		return err
	}
	o, err := j.output("drv-name", "output-name")
	if err != nil {
		return err
	}
	if _, err := o.CheckOutput("drv-name"); err != nil {
		return err
	}
	again, err := showOutput(o)
	if err != nil {
		return err
	}
	return sameJSON(again, f.data)
}

// hasher knows the derivations of the file's folder by name; every other input
// is one with a floating output, as in the test that the data is of.
func hasher() *nix.DerivationHasher {
	floating := &nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{{Name: "out", HashAlgo: "r:sha256"}},
	}}
	return &nix.DerivationHasher{Read: func(nix.StorePath) (*nix.Derivation, error) { return floating, nil }}
}

func checkRightPaths(f *file) error {
	drv, name, err := drvFromJSON(f.data)
	if err != nil {
		return err
	}
	if err := checkDrvJSON(f); err != nil {
		return err
	}
	return hasher().CheckOutputPaths(name, drv)
}

func checkWrongPaths(f *file) error {
	drv, name, err := drvFromJSON(f.data)
	if err != nil {
		return err
	}
	if hasher().CheckOutputPaths(name, drv) == nil {
		return errors.New("its paths are accepted")
	}
	return nil
}

// checkFillsIn computes the paths that a derivation does not have yet: they must
// be those of the file called -post instead of -pre, if there is one, and remain
// unknown otherwise.
func checkFillsIn(f *file) error {
	drv, name, err := drvFromJSON(f.data)
	if err != nil {
		return err
	}
	if err := checkDrvJSON(f); err != nil {
		return err
	}
	got, err := hasher().OutputPaths(name, drv)
	text, postErr := f.sibling(strings.TrimSuffix(path.Base(f.name), "-pre.json") + "-post.json")
	if errors.Is(postErr, fs.ErrNotExist) {
		if !errors.Is(err, nix.ErrDeferred) {
			return fmt.Errorf("its paths are %v, %w, not unknown", got, err)
		}
		return nil
	}
	if err := errors.Join(err, postErr); err != nil {
		return err
	}
	post, _, err := drvFromJSON(text)
	if err != nil {
		return err
	}
	for i, o := range post.Outputs {
		if got[i] != o.Path {
			return fmt.Errorf("output %s has path %s, not %s", o.Name, got[i], o.Path)
		}
	}
	return nil
}

// checkBuildTrace is for realisations with which a derivation was resolved: the
// placeholder of each output must be in the derivation before, and the path in
// that of afterwards.
func checkBuildTrace(f *file) error {
	var trace [][]json.RawMessage // pairs of an output and a path
	if err := json.Unmarshal(f.data, &trace); err != nil {
		return err
	}
	stem := strings.TrimSuffix(f.stem(), "-buildTrace")
	before, err := f.sibling(stem + "-before.json")
	if err != nil {
		return err
	}
	after, err := f.sibling(stem + "-after.json")
	if err != nil {
		after, err = f.sibling(stem + "-resolved.json")
	}
	if err != nil {
		return err
	}
	for _, pair := range trace {
		if err := checkResolved(pair, before, after); err != nil {
			return err
		}
	}
	return nil
}

func checkResolved(pair []json.RawMessage, before, after []byte) error {
	var id struct{ DrvPath, Output string }
	var base string
	if len(pair) != 2 || json.Unmarshal(pair[0], &id) != nil || json.Unmarshal(pair[1], &base) != nil {
		return fmt.Errorf("%s is not an output and a path", pair)
	}
	drv, err := nix.ParseStorePathBase(id.DrvPath)
	if err != nil {
		return err
	}
	out, err := nix.ParseStorePathBase(base)
	if err != nil {
		return err
	}
	if stands := nix.UpstreamPlaceholder(drv, id.Output); !bytes.Contains(before, []byte(stands)) {
		return fmt.Errorf("the placeholder %s of %s!%s is not in the derivation", stands, drv, id.Output)
	}
	if !bytes.Contains(after, []byte(out.String())) {
		return fmt.Errorf("the path %s is not in the resolved derivation", out)
	}
	return nil
}

// checkOptionsFeatures compares the one option that routes a build with what is
// read out of the derivation that the options are of.
func checkOptionsFeatures(f *file) error {
	var options struct{ RequiredSystemFeatures []string }
	if err := json.Unmarshal(f.data, &options); err != nil {
		return err
	}
	found := false
	for _, name := range optionsOf[f.stem()] {
		text, err := f.sibling("../" + name + ".drv")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
		if err := compareFeatures(name, text, options.RequiredSystemFeatures); err != nil {
			return err
		}
	}
	if !found {
		return errors.New("the derivation of these options is not there")
	}
	return nil
}

// optionsOf names the derivations in the folder above that options are of.
var optionsOf = map[string][]string{
	"all_set":                   {"advanced-attributes", "advanced-attributes-structured-attrs"},
	"defaults":                  {"advanced-attributes-defaults"},
	"structuredAttrs_all_set":   {"advanced-attributes-structured-attrs"},
	"structuredAttrs_defaults":  {"advanced-attributes-structured-attrs-defaults"},
	"structured-attrs_all_set":  {"advanced-attributes-structured-attrs"},
	"structured-attrs_defaults": {"advanced-attributes-structured-attrs-defaults"},
}

func compareFeatures(name string, text []byte, want []string) error {
	drv, err := nix.ParseDerivation(name, text)
	if err != nil {
		return err
	}
	kind, err := drv.Kind()
	if err != nil {
		return err
	}
	_, got, err := drv.Requirements()
	if err != nil {
		return err
	}
	if !kind.PathKnown() {
		want = append(slices.Clone(want), "ca-derivations") // what Nix adds later
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s requires %q, not %q", name, got, want)
	}
	return nil
}
