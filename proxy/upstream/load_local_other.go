//go:build !linux

package upstream

import "errors"

// ownLoad is for Linux alone.
func ownLoad() (Load, error) {
	return Load{}, errors.New("is this machine: the load is read on Linux alone")
}
