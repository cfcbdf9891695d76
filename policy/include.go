package policy

import (
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Bounds of what a policy may be split into: a wrong directory must not fill memory,
// and each file is read again with every reload.
const (
	maxIncludedFiles = 256
	maxIncludedBytes = 4 << 20 // of all of them
	maxDirEntries    = 4096
)

// includeExt is what the names of included files of a directory end with.
const includeExt = ".yaml"

// include puts the files that a policy includes into its tree, so that what reads
// the tree knows nothing of them. Lists and mappings are joined, in the order of
// the files; everything else is set once.
func (d *decoder) include(root *yaml.Node) {
	names := valueOf(root, "include")
	if names == nil || isNull(names) {
		return
	}
	r := includes{decoder: d, root: root, main: filepath.Join(d.dir, filepath.Base(d.file)), seen: map[string]*yaml.Node{}}
	d.includeNames(names, r.entry)
}

// includeNames reads one name of a file or directory, or a list of them.
func (d *decoder) includeNames(n *yaml.Node, visit func(at *yaml.Node, path string)) {
	one := func(item *yaml.Node) {
		if path, ok := d.path(item); ok {
			visit(item, path)
		}
	}
	switch n.Kind {
	case yaml.ScalarNode:
		one(n)
	case yaml.MappingNode:
		d.wrongType(n, "the name of a file or directory, or a list of them", "write include: [policy.d]")
	default:
		d.list(n, one)
	}
}

func valueOf(mapping *yaml.Node, key string) *yaml.Node {
	if mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// includes reads the files that one policy includes.
type includes struct {
	*decoder
	root  *yaml.Node
	main  string                // full path of the policy file
	seen  map[string]*yaml.Node // where each file was named
	bytes int64
}

// entry reads the file of a name, or all files of a directory.
func (r *includes) entry(at *yaml.Node, path string) {
	names, mode, err := r.disk.list(path, maxDirEntries)
	switch {
	case err != nil:
		r.mistake(at, "name a file or a directory that is there; the directory may be empty", "include: %v", err)
	case names == nil:
		r.readFile(at, path)
	case mode&othersMayWrite != 0:
		r.mistake(at, "chmod o-w "+path, "everybody may write into %s (mode %#o), and so decide who gets in", path, mode)
	default:
		r.directory(at, path, names)
	}
}

// directory reads the files of a directory in the order of their names. Other names
// are not read, but for those that were hardly meant to be left out.
func (r *includes) directory(at *yaml.Node, dir string, names []string) {
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(dir, name)
		switch {
		case strings.HasPrefix(name, "."): // editors lock files in this way
		case filepath.Ext(name) == includeExt:
			r.readFile(at, path)
		case filepath.Ext(name) == ".yml":
			r.mistake(at, "mv "+path+" "+strings.TrimSuffix(path, ".yml")+includeExt, "%s is not read: included files end with %s", path, includeExt)
		}
	}
}

// readFile reads one included file, as strictly as the policy file itself.
func (r *includes) readFile(at *yaml.Node, path string) {
	if !r.isNew(at, path) {
		return
	}
	text, mode, err := r.disk.read(path, maxPolicyBytes)
	r.bytes += int64(len(text))
	r.hash.Write(text)
	switch {
	case err != nil:
		r.mistake(at, "name a file that the account of the proxy can read, of at most "+sizeText(maxPolicyBytes), "include: %v", err)
	case mode&othersMayWrite != 0:
		r.mistake(at, "chmod o-w "+path, "everybody may write %s (mode %#o), and so decide who gets in", path, mode)
	case r.bytes > maxIncludedBytes:
		r.mistake(at, "include less; long lists of keys can stand in files of authorized_keys", "with %s the included files have more than %s together", path, sizeText(maxIncludedBytes))
	default:
		r.join(path, text)
	}
}

// isNew notes a file, or that it is not to be read.
func (r *includes) isNew(at *yaml.Node, path string) bool {
	const once = "name each file once, and keep the policy file out of the directories that it includes"
	first := r.seen[path]
	r.seen[path] = at
	switch {
	case path == r.main:
		r.mistake(at, once, "%s includes itself", path)
	case first != nil:
		r.mistake(at, once, "%s is included for the second time; the first is %s", path, r.at(first, at))
	case len(r.seen) == maxIncludedFiles+1: // said once
		r.mistake(at, "join some of them", "more than %d files are included; %s is the first that is not read", maxIncludedFiles, path)
	default:
		return len(r.seen) <= maxIncludedFiles && r.bytes <= maxIncludedBytes
	}
	return false
}

// join puts what a file has into the tree of the policy.
func (r *includes) join(path string, text []byte) {
	main := r.places.current
	r.places.current = path
	root := r.document(text)
	if root != nil {
		r.places.note(root, path)
	}
	r.places.current = main
	if root == nil {
		return
	}
	if root.Kind != yaml.MappingNode {
		r.wrongType(root, "keys with values, one \"key: value\" a line", "an included file is written like the policy file itself")
		return
	}
	if key := keyOf(root, "include"); key != nil {
		r.mistake(key, "name all files in "+r.file, "an included file cannot include others")
		return
	}
	r.pol.Included = append(r.pol.Included, path)
	r.joinMapping(r.root, root)
}

func keyOf(mapping *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == name {
			return mapping.Content[i]
		}
	}
	return nil
}

// joinMapping adds the keys of one mapping to another.
func (r *includes) joinMapping(to, from *yaml.Node) {
	r.pairs(from, func(key, value *yaml.Node) {
		first := valueOf(to, key.Value)
		switch {
		case first == nil:
			to.Content = append(to.Content, key, value)
		case isNull(value):
			r.hasValue(key.Value, value)
		case isNull(first): // said when it is read
		case first.Kind == yaml.MappingNode && value.Kind == yaml.MappingNode:
			r.joinMapping(first, value)
		case first.Kind == yaml.SequenceNode && value.Kind == yaml.SequenceNode:
			first.Content = append(first.Content, value.Content...)
		default:
			r.mistake(key, "remove one of them; only lists and keys with values are joined", "%s is set already, %s", quote(key.Value), r.at(keyOf(to, key.Value), key))
		}
	})
}

// included is for the schema: the files were read before everything else.
func (d *decoder) included(n *yaml.Node) {
	if d.shapes != nil {
		d.includeNames(n, nil)
	}
}
