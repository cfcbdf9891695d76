package upstream

import "strings"

// loadScript runs on a builder for as long as its input lasts. It answers each line
// "sample N" with what is known of the load and "end N", after one line that says
// what kind of machine it is:
//
//	load Linux CORES SECONDS-SINCE-1970
//	avg 0.52 0.58 0.59 1/602 12345      (/proc/loadavg)
//	total 16384000 kB                   (of /proc/meminfo)
//	available 8192000 kB
//	pressure cpu some avg10=0.00 ...    (/proc/pressure; cpu, memory and io)
//	Filesystem 1024-blocks ...          (df)
//	/dev/vda 1000 500 500 50% /
//	end 1
//
// and on macOS:
//
//	load Darwin CORES SECONDS-SINCE-1970
//	avg { 1.23 1.20 1.10 }              (sysctl)
//	total 17179869184 B
//	Mach Virtual Memory Statistics: ... (vm_stat)
//	...
//
// It is asked each time, rather than sleep, so that nothing of it outlives its
// input: that ends with the connection, however that ends.
//
// On Linux the shell reads the files by itself, and df is the one program that is
// started. PATH is set since some sshd give none. The shell of the account, which may
// be any, sees one word in quotes without what csh or fish would read as more: no
// quote, backslash, exclamation mark or new line. The first words are for whoever
// finds it among the processes.
var loadScript = "exec /bin/sh -c '" + strings.Join([]string{
	`: nixbastion looks at the load`,
	`exec 2>/dev/null`,
	`PATH=/run/current-system/sw/bin:/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/nix/var/nix/profiles/default/bin:$PATH`,
	`LC_ALL=C`,
	`export PATH LC_ALL`,
	`if test -r /proc/loadavg`,
	`then ` + loadLinux,
	`elif test "$(uname)" = Darwin`,
	`then ` + loadDarwin,
	`else echo "load $(uname)"`,
	`fi`,
}, "; ") + "'"

var loadLinux = strings.Join([]string{
	`c=0`,
	`while read -r k x; do case $k in cpu) ;; cpu*) c=$((c+1)) ;; *) break ;; esac; done </proc/stat`,
	`echo "load Linux $c $(date +%s)"`,
	`while read -r k n`,
	`do read -r x </proc/loadavg && echo "avg $x"`,
	`while read -r k v u; do case $k in MemTotal:) echo "total $v $u" ;; MemAvailable:) echo "available $v $u"; break ;; esac; done </proc/meminfo`,
	`for r in cpu memory io; do test -r /proc/pressure/$r && read -r x </proc/pressure/$r && echo "pressure $r $x"; done`,
	`df -Pk /nix/store`,
	`echo "end $n"`,
	`done`,
}, "; ")

var loadDarwin = strings.Join([]string{
	`t=$(sysctl -n hw.memsize)`,
	`echo "load Darwin $(sysctl -n hw.ncpu) $(date +%s)"`,
	`while read -r k n`,
	`do echo "avg $(sysctl -n vm.loadavg)"`,
	`echo "total $t B"`,
	`vm_stat`,
	`df -Pk /nix/store`,
	`echo "end $n"`,
	`done`,
}, "; ")
