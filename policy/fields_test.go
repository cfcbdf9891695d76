package policy

import (
	"strings"
	"testing"
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
