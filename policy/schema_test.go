package policy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// madeSchema is what schema.json should be: the shapes of the decoder, described
// with the comments of the example.
func madeSchema(t testing.TB) []byte {
	t.Helper()
	example, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := policyShape()
	explain(s, "", exampleComments(string(example)))
	text, err := json.MarshalIndent(struct {
		Schema string `json:"$schema"`
		Title  string `json:"title"`
		*shape
	}{"http://json-schema.org/draft-07/schema#", "Policy of nixbastion", s}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// explain puts comments where their keys are.
func explain(s *shape, path string, comments map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		child := s.Properties[key]
		child.Description = comments[path+key]
		explain(child, path+key+".", comments)
	}
	if s.Items != nil {
		explain(s.Items, path, comments)
	}
	for _, one := range s.AnyOf {
		explain(one, path, comments)
	}
}

var exampleKey = regexp.MustCompile(`^( *(?:- )?)([a-z_]+):`)

// exampleComments has the comment above each key of the example, by its path in the
// schema.
func exampleComments(example string) map[string]string {
	comments := map[string]string{}
	var above []string
	var path []string // the keys around
	var columns []int
	var last string // of the key in the line before
	for line := range strings.Lines(commentedOut.ReplaceAllString(example, "$1$2")) {
		line = strings.TrimRight(line, "\n")
		if text, comment := strings.CutPrefix(strings.TrimSpace(line), "#"); comment {
			above = append(above, strings.TrimPrefix(text, " "))
			continue
		}
		if m := exampleKey.FindStringSubmatch(line); m != nil {
			for len(columns) > 0 && columns[len(columns)-1] >= len(m[1]) {
				path, columns = path[:len(path)-1], columns[:len(columns)-1]
			}
			path, columns = append(path, m[2]), append(columns, len(m[1]))
			if above == nil && last != "" && strings.Count(last, ".") == len(path)-1 {
				above = strings.Split(comments[last], "\n") // one comment for both
			}
			if at := strings.Join(path, "."); comments[at] == "" {
				comments[at] = strings.Join(above, "\n")
			}
			last, above = strings.Join(path, "."), nil
			continue
		}
		last, above = "", nil
	}
	return comments
}

// Guards against a schema of another program than this one.
func TestTheSchemaIsThatOfTheDecoder(t *testing.T) {
	made := madeSchema(t)
	if *update {
		if err := os.WriteFile("schema.json", made, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(made, Schema()) {
		t.Error("schema.json is out of date: go test ./policy -run Schema -update")
	}
}

// Guards against keys that an editor does not know or explain, and against shapes
// that allow everything.
func TestTheSchemaHasEveryKeyWithItsShape(t *testing.T) {
	d := newDecoder("schema", realDisk{})
	made := d.shapeOf(d.settings)
	text, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	explain(made, "", exampleComments(string(text)))
	paths := map[string]bool{}
	checkShape(t, "", made, paths)
	if known := slices.Sorted(maps.Keys(d.schema)); !slices.Equal(known, slices.Sorted(maps.Keys(paths))) {
		t.Errorf("the decoder knows %v, the schema %v", known, slices.Sorted(maps.Keys(paths)))
	}
	for _, key := range []string{"include", "cache.size", "builders.wake.timeout", "trusted_public_keys.public", "scheduling.needs.amount_of"} {
		if !paths[key] {
			t.Errorf("%s is not in the schema: this test looks at nothing", key)
		}
	}
}

// explainedElsewhere are keys that the example has on one line with others.
var explainedElsewhere = regexp.MustCompile(`^builders\.(load|wake|sleep)\.|^trusted_public_keys\.|^domains\.name$|^scheduling\.needs\.`)

func checkShape(t *testing.T, path string, s *shape, paths map[string]bool) {
	if s.Type == "" && s.Enum == nil && s.Const == nil && len(s.AnyOf) == 0 {
		t.Errorf("%s may be anything", path)
	}
	if s.Type == "object" && s.AdditionalProperties != false && len(s.Properties) > 0 {
		t.Errorf("%s may have unknown keys", path)
	}
	for key, child := range s.Properties {
		at := strings.TrimPrefix(path+"."+key, ".")
		paths[at] = true
		if child.Description == "" && !explainedElsewhere.MatchString(at) {
			t.Errorf("%s is not explained in config.example.yaml", at)
		}
		checkShape(t, at, child, paths)
	}
	if s.Items != nil {
		checkShape(t, path, s.Items, paths)
	}
	for _, one := range s.AnyOf {
		checkShape(t, path, one, paths)
	}
}

func compiledSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(madeSchema(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is what editors make of YAML before they look at the schema.
func asJSON(t testing.TB, text string) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Guards against an editor that marks what is right, or lets pass what it could see
// to be wrong.
func TestTheSchemaTakesTheExampleAndRefusesSlips(t *testing.T) {
	s := compiledSchema(t)
	_, text := example(t)
	all := commentedOut.ReplaceAllString(text, "$1$2")
	d := newDir(t)
	for name, text := range map[string]string{"example": text, "with comments": all, "least": minimal, "whole": d.whole(),
		"printed": d.printed(t, d.whole()), "included": "principals: [{name: anna, role: read, authorized_keys: k}]\n", "include": "include: [a, b.yaml]\n", "one": "include: a\n",
		"zero": minimal + "drain_timeout: 0\nscheduling: {linger: \"0\", startup_grace: 0s}\n"} {
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, slip := range []string{
		"listn: [x]", "listen: x", "listen: [22]", "listen: [a, a]", "state_dir: 7", "cache: {sise: 1GiB}", "cache: {size: 1GB}", "cache: {size: 0}", "cache: []",
		"log: {level: loud}", "load: on", "load: {max_load: -1}", "load: {max_load: many}", "scheduling: {attempts: 0}", "scheduling: {attempts: 1.5}",
		"scheduling: {feed_ahead: 'yes'}", "scheduling: {linger: 5}", "scheduling: {needs: [{resources: {mem: 0}}]}", "builders: {name: b1}", "builders: [b1]",
		"builders: [{name: b1, address: b1}]", "builders: [{name: b1, address: b1, systems: {x86_64-linux: fast}}]", "builders: [{name: b1, address: b1, systems: x86_64-linux}]",
		"builders: [{name: b1, address: b1, systems: [a], wake: {timeout: 1m}}]", "principals: [{name: anna, keys: [x]}]", "principals: [{name: anna, role: build, keys: [x]}]",
		"principals: [{name: anna, role: full, keys: x}]", "trusted_public_keys: [{public: true}]", "domains: [{share: public}]", "build_limits: [{timeout: 5}]", "[]",
		"audit: on", "audit: {sync: never}", "audit: {keep: 0}", "ssh: {per_source_penalties: on}", "ssh: {per_source_penalties: {exempt: x}}", "ssh: {max_sessions: 0}", "ssh: {max_startups: 10}",
		"metrics: {listen: 9822}", "metrics: off", "reload: {running_builds: kill}", "reload: {watch: 'on'}", "drain_timeout: 5", "limits: {build_history: -1}", "principals: [{name: a, role: full, keys: [x], builds_per_minute: 0}]",
	} {
		if s.Validate(asJSON(t, slip)) == nil {
			t.Errorf("%s passes", slip)
		}
	}
}

// Guards against a schema that changes who reads it: asking for shapes leaves no trace
// in what is decoded afterwards.
func TestAskingForShapesIsNotDecoding(t *testing.T) {
	d := newDir(t)
	want := d.load(t, d.whole())
	policyShape()
	if got := d.load(t, d.whole()); !reflect.DeepEqual(got, want) {
		t.Error("another policy")
	}
}
