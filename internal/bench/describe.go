package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// describe says on what the numbers were taken.
func describe(ctx context.Context, l *lab) ([]string, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	about := []string{
		time.Now().Format("2006-01-02 15:04 MST"),
		fmt.Sprintf("%d cores (%s), Linux %s, Go %s", runtime.NumCPU(), processor(), strings.TrimSpace(string(kernel)), strings.TrimPrefix(runtime.Version(), "go")),
	}
	for _, version := range slices.Sorted(maps.Keys(l.clients)) {
		line, err := versions(ctx, l.clients[version])
		if err != nil {
			return nil, err
		}
		about = append(about, "client: "+line)
	}
	line, err := versions(ctx, l.builder)
	if err != nil {
		return nil, err
	}
	about = append(about, "builder: "+line)
	for _, w := range l.ways {
		line, err := middleVersion(ctx, w)
		if err != nil {
			return nil, err
		}
		if line != "" {
			about = append(about, w.name+": "+line)
		}
	}
	return about, nil
}

// versions asks a host for those of Nix and OpenSSH.
func versions(ctx context.Context, h *testbed.Host) (string, error) {
	text, err := shell(ctx, h, "nix --version; ssh -V 2>&1")
	return strings.Join(strings.Split(strings.TrimSpace(text), "\n"), ", "), err
}

func middleVersion(ctx context.Context, w *way) (string, error) {
	switch w.name {
	case proxy, unaudited:
		text, err := shell(ctx, w.middle, world.Binary+" version")
		return strings.TrimSpace(text), err
	case haproxy:
		text, err := shell(ctx, w.middle, "haproxy -v")
		return strings.SplitN(text, "\n", 2)[0], err
	case hub:
		return versions(ctx, w.middle)
	}
	return "", nil
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(name, " \t:\n")
		}
	}
	return runtime.GOARCH
}
