package main

import (
	"context"
	"fmt"
)

func jumpUp() bench {
	return jump("jumpup", "1 GiB up by ssh -J", "head -c %d /dev/zero | %s 'test $(wc -c) = %[1]d'")
}

func jumpDown() bench {
	return jump("jumpdown", "1 GiB down by ssh -J", "test $(%[2]s 'head -c %[1]d /dev/zero' | wc -c) = %[1]d")
}

// jump compares the proxy with an sshd in the same place: that of the hub.
func jump(name, title, script string) bench {
	return bench{
		name: name, share: 120, title: title,
		what: "a stream of 1 GiB between client and builder in an ssh session with the builder, by ssh -J through proxy and through the sshd of the hub; " +
			"direct and HAProxy have no second ssh session around it",
		slow: true, bytes: bigBytes,
		goals: []goal{{rate: 0.9, to: hub}},
		warm: func(ctx context.Context, s *stage, w *way) error {
			_, err := s.watch(ctx, s.client, w, []string{"sh", "-c", s.login(w) + " true"})
			return err
		},
		before: func(_ context.Context, s *stage, w *way) ([]string, error) {
			return []string{"bash", "-o", "pipefail", "-c", fmt.Sprintf(script, bigBytes, s.login(w))}, nil
		},
	}
}

// login is ssh to the builder over a way. What ssh makes of -J has the default
// keys and no option of its own, so it is written out.
func (s *stage) login(w *way) string {
	ssh := "ssh -i " + s.clientKey().File()
	if w.name == direct || w.name == haproxy {
		return ssh + " " + w.user() + "@" + w.host
	}
	return fmt.Sprintf("%s -o ProxyCommand='%[1]s -W [%%h]:%%p %s@%s' nix@builder", ssh, w.user(), w.host)
}
