package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/wire"
)

// What only the serve protocol has.

const (
	serveMagicClient = 0x390c9deb
	serveMagicServer = 0x5452eecb
)

var serveVersion = regexp.MustCompile(`-2\.(\d+)$`)

// serveCodec speaks the version in a file's name.
func serveCodec(f *file, in []byte, out *bytes.Buffer) *serve.Codec {
	return serve.NewCodec(bytes.NewReader(in), out, serveVersionOf(f))
}

func serveVersionOf(f *file) serve.Version {
	minor := serveVersion.FindStringSubmatch(f.stem())
	if minor == nil {
		return serve.Latest
	}
	n, _ := strconv.Atoi(minor[1]) // of digits
	return serve.Version(2<<8 | n)
}

// serveMessages is messages for the serve protocol.
func serveMessages[T any](read func(*serve.Codec) T, write func(*serve.Codec, T), show func(T) any) func(*file) error {
	return checkMessages(serveCodec, read, write, show)
}

var (
	readServeResult, writeServeResult = (*serve.Codec).ReadBuildResult, (*serve.Codec).WriteBuildResult
	readReplied, writeReplied         = (*serve.Codec).ReadPathInfo, (*serve.Codec).WritePathInfo
)

func readKeyed(c *serve.Codec) *nix.PathInfo {
	path := c.R.StorePath()
	info := c.ReadPathInfo()
	info.Path = path
	return info
}

func writeKeyed(c *serve.Codec, info *nix.PathInfo) {
	c.W.StorePath(info.Path)
	c.WritePathInfo(info)
}

// checkBuildOptions compares the only value of each file, which Nix's test has
// in its source: what a version does not have stays zero.
func checkBuildOptions(f *file) error {
	version := serveVersionOf(f)
	want := serve.BuildOptions{MaxSilentTime: 5, BuildTimeout: 6}
	if version >= 2<<8|2 {
		want.MaxLogSize = 7
	}
	if version >= 2<<8|3 {
		want.Repeats = 8
		want.EnforceDeterminism = version < 2<<8|7
	}
	want.KeepFailed = version >= 2<<8|7
	values, err := decode(serveCodec, f, (*serve.Codec).ReadBuildOptions)
	if err != nil {
		return err
	}
	if len(values) != 1 || values[0] != want {
		return fmt.Errorf("it is read as %+v, not %+v", values, want)
	}
	return sameBytes(encode(serveCodec, f, values, (*serve.Codec).WriteBuildOptions), f.data)
}

// checkServeGreeting compares the first that a server says: a client takes it,
// and our server says the same with its own version.
func checkServeGreeting(f *file) error {
	r := wire.NewReader(bytes.NewReader(f.data[8:]))
	version := serve.Version(r.Uint64())
	c, err := serve.NewClient(context.Background(), &stream{Reader: bytes.NewReader(f.data)}, serve.ClientOptions{})
	if err != nil {
		return err
	}
	if c.Version() != min(version, serve.Announced) {
		return fmt.Errorf("a client speaks %s to a server of %s", c.Version(), version)
	}
	client := says(func(w *wire.Writer) { w.Uint64(serveMagicClient); w.Uint64(uint64(version)) })
	if err := serve.Serve(context.Background(), client, nil, serve.ServeOptions{}); err != nil {
		return err
	}
	want := bytes.Clone(f.data)
	copy(want[8:], wireBytes(func(w *wire.Writer) { w.Uint64(uint64(serve.Announced)) }))
	return sameBytes(client.heard.Bytes(), want)
}

// checkServeSession reads a recorded session from both sides, command by command,
// to the last byte of either.
func checkServeSession(f *file) error {
	answers, err := f.other(".s2c")
	if err != nil {
		return err
	}
	first := wire.NewReader(bytes.NewReader(f.data))
	first.Uint64()
	version := serve.Version(first.Uint64()) // both ends of a recording are of one release
	client := serve.NewCodec(bytes.NewReader(f.data), nil, version)
	server := serve.NewCodec(bytes.NewReader(answers), nil, version)
	client.R.Expect("the client's magic", serveMagicClient)
	client.R.Expect("the client's version", uint64(version))
	server.R.Expect("the server's magic", serveMagicServer)
	server.R.Expect("the server's version", uint64(version))
	for n := 1; client.R.More() && server.R.Err() == nil; n++ {
		if err := serveOperation(client, server); err != nil {
			return fmt.Errorf("command %d: %w", n, err)
		}
	}
	if server.R.Err() == nil && server.R.More() {
		return fmt.Errorf("%d bytes of the server are left over", len(answers)-int(server.R.Offset()))
	}
	return errors.Join(client.R.Err(), server.R.Err())
}

// serveCommands read a request and its reply.
var serveCommands = map[uint64]func(client, server *serve.Codec) error{
	1: func(client, server *serve.Codec) error {
		client.R.Uint64()
		client.R.Uint64()
		client.R.StorePaths(someElements)
		server.R.StorePaths(someElements)
		return nil
	},
	2: func(client, server *serve.Codec) error {
		client.R.StorePaths(someElements)
		for !server.R.OptionalStorePath().IsZero() {
			server.ReadPathInfo()
		}
		return nil
	},
	3: func(client, server *serve.Codec) error {
		client.R.StorePath()
		_, err := readArchive(server.R)
		return err
	},
	8: func(client, server *serve.Codec) error {
		client.R.StorePath()
		client.ReadDerivation()
		client.ReadBuildOptions()
		server.ReadBuildResult()
		return nil
	},
	9: func(client, server *serve.Codec) error {
		info := client.ReadUpload()
		got, err := readArchive(client.R)
		server.R.Expect("the reply", 1)
		return errors.Join(err, got.check(info))
	},
}

func serveOperation(client, server *serve.Codec) error {
	number := client.R.Uint64()
	command, known := serveCommands[number]
	if !known {
		return fmt.Errorf("number %d is in no recording that this knows", number)
	}
	err := command(client, server)
	return errors.Join(err, client.R.Err(), server.R.Err())
}
