package policy

import (
	"fmt"
	"math"
	"regexp"
	"strconv"

	"gopkg.in/yaml.v3"
)

// units are those of sizes. Powers of ten are left out: whoever writes GB may mean
// either.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1},
}

var sizeGrammar = regexp.MustCompile(`^(0|[1-9][0-9]*) ?([A-Za-z]+)$`)

// sizePattern is sizeGrammar with the units that there are.
const sizePattern = `^(0|[1-9][0-9]*) ?(B|KiB|MiB|GiB|TiB)$`

const sizeHint = "write a whole number and one of B, KiB, MiB, GiB, TiB, as 200GiB"

// size reads a number of bytes of at least least.
func (d *decoder) size(n *yaml.Node, least int64) (int64, bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return unitShape(sizePattern, least <= 0) }) {
		return 0, false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		if n.Kind == yaml.ScalarNode && n.Value == "0" && least <= 0 {
			return 0, true
		}
		d.wrongType(n, "a size with its unit", sizeHint)
		return 0, false
	}
	bytes, err := parseSize(n.Value)
	if err == nil && bytes < least {
		err = refuse("choose a larger one", "size %s is below the least of %s", quote(n.Value), sizeText(least))
	}
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return 0, false
	}
	return bytes, true
}

// ParseSize reads a number of bytes as the policy file has it. Its error has a hint
// on a line of its own.
func ParseSize(text string) (int64, error) {
	bytes, err := parseSize(text)
	if err != nil {
		return 0, fmt.Errorf("%w\nhint: %s", err, hintOf(err))
	}
	return bytes, nil
}

func parseSize(text string) (int64, error) {
	m := sizeGrammar.FindStringSubmatch(text)
	if m == nil {
		return 0, refuse(sizeHint, "%s is not a size", quote(text))
	}
	for _, u := range units {
		if u.name != m[2] {
			continue
		}
		count, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || count > math.MaxInt64/u.bytes {
			return 0, refuse("choose a smaller one", "size %s is too large", quote(text))
		}
		return count * u.bytes, nil
	}
	return 0, refuse(sizeHint, "%s is not a unit of sizes", quote(m[2]))
}

// sizeText writes a size in the largest unit that leaves it whole.
func sizeText(bytes int64) string {
	for _, u := range units {
		if bytes != 0 && bytes%u.bytes == 0 {
			return fmt.Sprintf("%d%s", bytes/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", bytes)
}
