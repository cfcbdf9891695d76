package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"nixbastion/internal/nix"
)

// The JSON that Nix's tests have for each noun, made of ours.

type object = map[string]any

// sameJSON compares a value, as it is when it has become JSON, with a text.
func sameJSON(got any, want []byte) error {
	text, err := json.Marshal(got)
	if err != nil {
		return err
	}
	var a, b any
	if err := json.Unmarshal(text, &a); err != nil {
		return err
	}
	if err := json.Unmarshal(want, &b); err != nil {
		return fmt.Errorf("golden JSON: %w", err)
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Errorf("it is %s, JSON has %s", text, want)
	}
	return nil
}

func asIs(mode nix.BuildMode) any { return mode }

// orNull is null for zero values.
func orNull[T comparable](v T, text any) any {
	var zero T
	if v == zero {
		return nil
	}
	return text
}

func basePathJSON(p nix.StorePath) any { return orNull(p, p.Base()) }

func bases(paths []nix.StorePath) []string {
	list := []string{}
	for _, p := range paths {
		list = append(list, p.Base())
	}
	return list
}

var methodNames = map[nix.IngestionMethod]string{nix.Text: "text", nix.Flat: "flat", nix.NAR: "nar", nix.Git: "git"}

func contentAddressJSON(ca nix.ContentAddress) any {
	if ca.IsZero() {
		return nil
	}
	return object{"method": methodNames[ca.Method], "hash": ca.Hash.SRI()}
}

func targetJSON(t nix.DerivedPath) any {
	switch {
	case !t.Built:
		return t.Path.Base()
	case len(t.Outputs) == 0:
		return object{"drvPath": t.Path.Base(), "outputs": []string{"*"}}
	}
	return object{"drvPath": t.Path.Base(), "outputs": t.Outputs}
}

func trustJSON(trust nix.Trust) any {
	return orNull(trust, trust == nix.Trusted)
}

// signaturesJSON shows texts as objects.
func signaturesJSON(texts []string) []object {
	list := []object{}
	for _, text := range texts {
		name, sig, _ := strings.Cut(text, ":")
		list = append(list, object{"keyName": name, "sig": sig})
	}
	return list
}

func texts(sigs []nix.Signature) []string {
	list := []string{}
	for _, s := range sigs {
		list = append(list, s.String())
	}
	return list
}

func pathInfoJSON(info *nix.PathInfo) any {
	return object{
		"version": 3, "storeDir": nix.StoreDir,
		"ca": contentAddressJSON(info.CA), "deriver": basePathJSON(info.Deriver),
		"narHash": info.NarHash.SRI(), "narSize": info.NarSize, "references": bases(info.References),
		"registrationTime": orNull(info.RegistrationTime, info.RegistrationTime),
		"signatures":       signaturesJSON(texts(info.Sigs)), "ultimate": info.Ultimate,
	}
}

func keyedPathInfoJSON(info *nix.PathInfo) any {
	o := pathInfoJSON(info).(object)
	o["path"] = info.Path.Base()
	return o
}

func drvOutputJSON(id nix.DrvOutput) any {
	if id.DrvHash != "" {
		return id.String()
	}
	return object{"drvPath": id.DrvPath.Base(), "outputName": id.Output}
}

func unkeyedRealisationJSON(r nix.Realisation) any {
	return object{"outPath": r.OutPath.Base(), "signatures": signaturesJSON(r.Sigs)}
}

// realisationJSON shows the old form.
func realisationJSON(r nix.Realisation) any {
	dependents := object{}
	for id, p := range r.Dependents {
		dependents[id] = p.Base()
	}
	return object{
		"dependentRealisations": dependents, "id": r.ID.String(),
		"outPath": r.OutPath.Base(), "signatures": signaturesJSON(r.Sigs),
	}
}

func buildResultJSON(r *nix.BuildResult) any {
	o := object{
		"status": r.Status.String(), "success": r.Status.Success(),
		"timesBuilt": r.TimesBuilt, "startTime": r.StartTime, "stopTime": r.StopTime,
	}
	if r.CPUUser != nil {
		o["cpuUser"] = *r.CPUUser
	}
	if r.CPUSystem != nil {
		o["cpuSystem"] = *r.CPUSystem
	}
	if !r.Status.Success() {
		o["errorMsg"] = r.ErrorMsg
		o["isNonDeterministic"] = r.IsNonDeterministic
		return o
	}
	outputs := object{}
	for _, out := range r.Outputs {
		outputs[out.Name] = builtOutputJSON(out)
	}
	o["builtOutputs"] = outputs
	return o
}

func builtOutputJSON(out nix.BuiltOutput) any {
	r := nix.Realisation{OutPath: out.Path, Sigs: out.Sigs, ID: nix.DrvOutput{DrvHash: out.DrvHash, Output: out.Name}}
	if out.DrvHash == "" {
		return unkeyedRealisationJSON(r)
	}
	return realisationJSON(r)
}

func keyedResultJSON(r nix.KeyedBuildResult) any {
	o := buildResultJSON(r.Result).(object)
	o["path"] = targetJSON(r.Target)
	return o
}
