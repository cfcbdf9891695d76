package main

import (
	"math"
	"testing"
	"testing/fstest"
)

// Guards against a limit of the unit or container that is not seen, so that the kernel
// ends the proxy instead of its collector running, and against one that is made up.
func TestKernelMemoryLimitIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"unit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/nixbastion.service\n",
			"sys/fs/cgroup/system.slice/nixbastion.service/memory.max": "536870912\n",
			"sys/fs/cgroup/system.slice/memory.max":                    "max\n",
		}, 512 << 20},
		"slice above": {map[string]string{
			"proc/self/cgroup":                           "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max":               "2147483648\n",
			"sys/fs/cgroup/a/memory.max":                 "1073741824\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "1\n", // not ours
		}, 1 << 30},
		"container": {map[string]string{
			"proc/self/cgroup":         "0::/docker/0123\n",
			"sys/fs/cgroup/memory.max": "1073741824\n",
		}, 1 << 30},
		"version 1": {map[string]string{
			"proc/self/cgroup": "12:cpu,cpuacct:/x\n5:memory:/x\n0::/\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1073741824\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   "9223372036854771712\n",
		}, 1 << 30},
		"version 1, none": {map[string]string{
			"proc/self/cgroup": "5:memory:/x\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
		}, math.MaxInt64},
		"none":       {map[string]string{"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/memory.max": "max\n"}, math.MaxInt64},
		"no cgroups": {nil, math.MaxInt64},
		"nonsense":   {map[string]string{"proc/self/cgroup": "what\n0::/../../x\n", "sys/fs/cgroup/x/memory.max": "-1\n"}, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for file, text := range c.files {
				root[file] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := kernelMemoryLimit(root); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
