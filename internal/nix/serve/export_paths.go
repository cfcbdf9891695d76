package serve

import (
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// exportMagic stands between a NAR and what is said of it in an export stream:
//
//	1, NAR, exportMagic, path, references, deriver, 0     as often as there are paths
//	0                                                     the end
//
// Instead of the 0 behind a path there may be 1 and a signature in a form that
// nobody checks any more. There is no hash and no content address.
const exportMagic = 0x4558494e // "NIXE"

// exportPaths: a number without a meaning and a set of paths. No client since
// 2.0 asks, and servers since 2.32 do not answer.
func (q *request) exportPaths() (func() error, error) {
	q.r.Uint64() // whether to sign
	paths := q.r.StorePaths(maxExport)
	if err := q.received(); err != nil {
		return nil, err
	}
	infos, err := q.inOrder(paths)
	return func() error {
		for _, info := range infos {
			if err := q.sendExport(info); err != nil {
				return err
			}
		}
		q.w.Uint64(0)
		return nil
	}, err
}

func (q *request) sendExport(info *nix.PathInfo) error {
	q.w.Uint64(1)
	if err := q.sendNar(info.Path); err != nil {
		return err
	}
	q.writeExported(info)
	return q.w.Err()
}

// writeExported writes what stands behind a NAR.
func (c *conn) writeExported(info *nix.PathInfo) {
	c.w.Uint64(exportMagic)
	c.w.StorePath(info.Path)
	c.w.StorePaths(info.References)
	c.w.StorePath(info.Deriver)
	c.w.Uint64(0)
}

// readExported reads it.
func (c *conn) readExported() *nix.PathInfo {
	c.r.Expect("the mark behind an exported NAR", exportMagic)
	info := &nix.PathInfo{Path: c.r.StorePath()}
	info.References = c.r.StorePaths(wire.MaxReferences)
	info.Deriver = c.r.OptionalStorePath()
	if c.r.Optional() {
		c.r.String(wire.MaxString)
	}
	return info
}

// inOrder returns the infos of paths, references first.
func (q *request) inOrder(paths []nix.StorePath) ([]*nix.PathInfo, error) {
	infos := make(map[nix.StorePath]*nix.PathInfo, len(paths))
	for _, path := range paths {
		info, err := q.store.QueryPathInfo(q.ctx, path)
		if err != nil {
			return nil, wire.NotValid(path, err)
		}
		infos[path] = info
	}
	var sorted []*nix.PathInfo
	var visit func(nix.StorePath)
	visit = func(path nix.StorePath) { // as deep as references go among maxExport paths
		info := infos[path]
		if info == nil {
			return
		}
		delete(infos, path)
		for _, ref := range info.References {
			visit(ref)
		}
		sorted = append(sorted, info)
	}
	for _, path := range paths {
		visit(path)
	}
	return sorted, nil
}
