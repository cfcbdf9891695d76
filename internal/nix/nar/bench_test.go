package nar

import (
	"bytes"
	"fmt"
	"testing"
)

// BenchmarkValidator writes archives in pieces of 64 KiB, as they arrive. The
// rate is of a single goroutine, so it is bytes per second of one CPU.
func BenchmarkValidator(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("files of %d KiB", size>>10), func(b *testing.B) {
			data := manyFiles(size)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				v := NewValidator(Visitor{})
				for rest := data; len(rest) > 0; {
					n, err := v.Write(rest[:min(len(rest), 64<<10)])
					if err != nil {
						b.Fatal(err)
					}
					rest = rest[n:]
				}
				if !v.Done() {
					b.Fatal("archive is not complete")
				}
			}
		})
	}
}

// BenchmarkReader is the same for a reader that hands the bytes on.
func BenchmarkReader(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("files of %d KiB", size>>10), func(b *testing.B) {
			data := manyFiles(size)
			buf := make([]byte, 64<<10)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r := NewReader(bytes.NewReader(data))
				for {
					if _, err := r.Read(buf); err != nil {
						break
					}
				}
				if r.Size() != uint64(len(data)) {
					b.Fatal("archive is not complete")
				}
			}
		})
	}
}

// manyFiles returns a directory of 32 MiB in files of one size.
func manyFiles(size int) []byte {
	contents := string(make([]byte, size))
	var entries [][]string
	for i := range (32 << 20) / size {
		entries = append(entries, entry(fmt.Sprintf("file%06d", i), file(contents)))
	}
	return archive(directory(entries...))
}
