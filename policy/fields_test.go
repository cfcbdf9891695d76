package policy

import (
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// Guards against a key that check --print and diff forget: the decoder's keys and the
// fields are the same.
func TestEveryKeyOfTheSchemaIsAField(t *testing.T) {
	d, text := example(t)
	dec := newDecoder(d.path("policy.yaml"), realDisk{})
	dec.decode([]byte(commentedOut.ReplaceAllString(text, "$1$2")))
	if err := dec.mistakes.sorted(dec.file); err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{"include": true} // which is what was joined
	addFields(fields, "", dec.allFields())
	for key := range dec.schema {
		if !fields[key] {
			t.Errorf("%s is no field", key)
		}
	}
	for key := range fields {
		if _, known := dec.schema[key]; !known {
			t.Errorf("%s is a field and no key", key)
		}
	}
}

func addFields(to map[string]bool, path string, fields []field) {
	for _, f := range fields {
		at := strings.TrimPrefix(path+"."+f.key, ".")
		to[at] = true
		switch value := f.value.(type) {
		case []field:
			addFields(to, at, value)
		case [][]field:
			for _, item := range value {
				addFields(to, at, item)
			}
		}
	}
}

// Guards against a field that is another setting's, which diff would compare in its
// place: what a file sets is the value of its field.
func TestFieldsHaveTheValuesOfTheirKeys(t *testing.T) {
	d, text := example(t)
	d.write("hosts", "b2 "+authorizedLine("b2")+"\n", 0o644)
	d.write("otto.keys", "", 0o644)
	checked := 0
	for _, text := range []string{commentedOut.ReplaceAllString(text, "$1$2"), changedKeys().Replace(changedPolicy), d.whole()} {
		dec := newDecoder(d.path("policy.yaml"), realDisk{})
		dec.decode([]byte(text))
		if err := dec.mistakes.sorted(dec.file); err != nil {
			t.Fatal(err)
		}
		p := &printer{decoder: dec}
		checked += p.checkFields(t, "", dec.root, dec.allFields())
	}
	if checked < 150 {
		t.Errorf("only %d values were compared", checked)
	}
}

// checkFields compares fields with what the file has, and counts them.
func (p *printer) checkFields(t *testing.T, path string, n *yaml.Node, fields []field) (checked int) {
	for _, f := range fields {
		node := valueOf(n, f.key)
		at := strings.TrimPrefix(path+"."+f.key, ".")
		if node == nil || writtenOtherwise[at] {
			continue
		}
		switch value := f.value.(type) {
		case []field:
			checked += p.checkFields(t, at, node, value)
			continue
		case [][]field:
			for i, item := range value {
				if n := itemNode(node, i, item); n != nil && n.Kind == yaml.MappingNode {
					checked += p.checkFields(t, at, n, item)
				}
			}
			continue
		}
		checked++
		if got, want := valueText(f.value), nodeText(p.plain(node)); !sameYAML(got, want) && !sameAmount(got, want) {
			t.Errorf("%s: the field has %s, the file %s", at, got, want)
		}
	}
	return checked
}

// writtenOtherwise are keys whose values stand in a policy in another form than in the
// file.
var writtenOtherwise = map[string]bool{
	"builders.address": true, "builders.host_keys": true, "builders.systems": true, "domains.signing_keys": true,
	"principals.keys": true, "principals.authorized_keys": true,
}

// sameYAML compares values, whatever their quotes.
func sameYAML(a, b string) bool {
	var x, y any
	return yaml.Unmarshal([]byte(a), &x) == nil && yaml.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// sameAmount compares sizes and durations, which can be written in several ways.
func sameAmount(a, b string) bool {
	s, err1 := parseSize(a)
	u, err2 := parseSize(b)
	if err1 == nil && (err2 == nil && s == u || s == 0 && b == "0") {
		return true
	}
	x, err1 := parseDuration(a)
	y, err2 := parseDuration(b)
	return err1 == nil && err2 == nil && x == y
}
