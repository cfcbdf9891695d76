package serve

import (
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// family is a store with a derivation, its output, and what both refer to.
func family() *memStore {
	store := newMemStore()
	for _, o := range []storetest.Object{
		storetest.NewObject("libc", "libc"),
		storetest.NewObject("lib", "lib", pathNamed("libc"), pathNamed("lib")),
		storetest.NewObject("tool", "tool", pathNamed("lib"), pathNamed("libc")),
		storetest.NewObject("script", "script"),
		storetest.NewObject("tool.drv", "Derive()", pathNamed("script"), pathNamed("lib.drv")),
		storetest.NewObject("lib.drv", "Derive()"),
		storetest.NewObject("cut", "cut", pathNamed("gone")),
	} {
		store.Put(o)
	}
	store.outputs[pathNamed("tool.drv")] = map[string]nix.StorePath{"out": pathNamed("tool"), "doc": pathNamed("gone"), "later": {}}
	store.outputs[pathNamed("lib.drv")] = map[string]nix.StorePath{"out": pathNamed("lib")}
	return store
}

func named(names ...string) (paths []nix.StorePath) {
	for _, name := range names {
		paths = append(paths, pathNamed(name))
	}
	return nix.SortPaths(paths)
}

// Guards against a copy that lacks something of what it needs, or brings what
// nobody asked for.
func TestClosureHasAllReferencesAndOutputsIfAsked(t *testing.T) {
	for name, q := range map[string]struct {
		outputs bool
		of      []string
		want    []nix.StorePath
	}{
		"nothing":               {false, nil, nil},
		"one":                   {false, []string{"libc"}, named("libc")},
		"chain":                 {false, []string{"tool"}, named("tool", "lib", "libc")},
		"two":                   {false, []string{"lib", "script"}, named("lib", "libc", "script")},
		"derivation":            {false, []string{"tool.drv"}, named("tool.drv", "lib.drv", "script")},
		"derivation and output": {true, []string{"tool.drv"}, named("tool.drv", "lib.drv", "script", "tool", "lib", "libc")},
		"output of no one":      {true, []string{"libc"}, named("libc")},
	} {
		c := connect(t, family(), ServeOptions{}).greet()
		c.ask(cmdQueryClosure, func(c *conn) { c.w.Bool(q.outputs); c.w.StorePaths(named(q.of...)) })
		same(t, name, c.r.StorePaths(100), q.want)
		check(t, name, c.r.Err())
		c.Close()
		<-c.done
	}
}

// Guards against a closure that is answered though it is not whole, and one that
// is larger than anything may be.
func TestClosureThatIsNotWholeEndsTheSession(t *testing.T) {
	gone := "path '" + pathNamed("gone").String() + "' is not valid"
	for name, q := range map[string]struct {
		store   nix.Store
		outputs bool
		of      string
		want    string
	}{
		"unknown":          {family(), false, "gone", gone},
		"unknown refs":     {family(), false, "cut", gone},
		"too many":         {family(), true, "tool.drv", "the closure has more than 5 paths"},
		"no output map":    {coreStore{family()}, true, "lib.drv", "QueryClosure with outputs of derivations is not supported through this proxy"},
		"unknown drv refs": {coreStore{family()}, true, "cut", gone},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, q.store, ServeOptions{Limits: Limits{Paths: 5}}).greet()
			c.ask(cmdQueryClosure, func(c *conn) { c.w.Bool(q.outputs); c.w.StorePaths(named(q.of)) })
			c.expectEnd(t, q.want)
		})
	}
}
