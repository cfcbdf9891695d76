// Package policy reads the one YAML file that says who may do what: the builders,
// the principals that may use them, and the domains that keep principals apart.
//
// Begin with [Load], or with [NewLive] for a policy that follows its file. The
// reading is strict: whatever is not understood is a mistake, all mistakes are
// found at once, and each names its place in the file; see [Mistakes]. What a
// valid file means is said in plain words by Policy.Describe.
//
// A file is read in three steps. document.go turns its bytes into one tree of YAML
// nodes without anything that YAML can hide things in, to which include.go adds those of
// the files that it includes. The decoders of
// settings.go, builders.go and principals.go take the tree apart, and those of
// scheduling_decode.go, needs.go, build_limits.go, load_limits.go and wake.go; each
// knows the keys of one mapping. relations.go then looks at what parts say about each
// other.
//
// Two lists know all keys, and tests hold them to the decoders: schema.go asks these
// themselves what they read, for editors, and fields.go has a policy in effect as a file
// would say it, for [Print] and Policy.Compare. A new key needs a line in fields.go.
//
// Nothing is denied here by a rule: who is not named has no rights at all.
package policy
