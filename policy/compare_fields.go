package policy

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// fields compares two lists of fields with the same keys. Lists of what has names are
// compared item by item; the other lists of mappings have sentences of their own.
func (c *comparison) fields(subject, path string, old, next []field) {
	for _, f := range next {
		at := path + f.key
		before := valueOfField(old, f.key)
		if saidElsewhere[at] || reflect.DeepEqual(before, f.value) {
			continue
		}
		switch value := f.value.(type) {
		case [][]field:
			c.named(at, before.([][]field), value)
			continue
		case []field:
			if was, both := before.([]field); both {
				c.fields(subject, at+".", was, value)
				continue
			}
		}
		c.field(subject, at, before, f.value)
	}
}

func valueOfField(fields []field, key string) any {
	for _, f := range fields {
		if f.key == key {
			return f.value
		}
	}
	return nil
}

// named compares what is in both of two lists of the same name.
func (c *comparison) named(path string, old, next [][]field) {
	if singular[path] == "" { // nobody thought of it: better all of it than nothing
		c.field("", path, old, next)
		return
	}
	before := make(map[any][]field, len(old))
	for _, item := range old {
		before[valueOfField(item, "name")] = item
	}
	for _, item := range next {
		name := valueOfField(item, "name")
		if was := before[name]; was != nil {
			c.fields(singular[path]+" "+name.(string), path+".", meant(path, was), meant(path, item))
		}
	}
}

func meant(path string, fields []field) []field {
	if path != "principals" {
		return fields
	}
	for i := range fields {
		if usual, ok := withoutMeaning[fields[i].key]; ok && fields[i].value == nil {
			fields[i].value = usual
		}
	}
	return fields
}

// field says how one field changes.
func (c *comparison) field(subject, path string, old, next any) {
	area, effect := areaOfPath(path), effectOf(path, old, next)
	was, isList := old.([]string)
	is, _ := next.([]string)
	if isList && is != nil && !slices.Contains(wholeLists, path) && !slices.Equal(sorted(was), sorted(is)) {
		c.items(area, subject, path, was, is)
		return
	}
	switch phrase := phrases[path][fieldText(next)]; {
	case phrase != "": // a setting of the whole proxy is its own subject
		c.add(area, effect, cmp.Or(subject, path), "%s; it was %s", phrase, fieldText(old))
	case subject == "":
		c.add(area, effect, path, "is %s, was %s", fieldText(next), fieldText(old))
	default:
		c.add(area, effect, subject, "has %s: %s, was %s", keyOfItem(path), fieldText(next), fieldText(old))
	}
}

// keyOfItem is a path within the item of a list.
func keyOfItem(path string) string { return path[strings.IndexByte(path, '.')+1:] }

func areaOfPath(path string) Area {
	for end := len(path); end > 0; end-- {
		if area, ok := areaOf[path[:end]]; ok {
			return area
		}
	}
	return areaOf[""]
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// items says what a list gains and loses.
func (c *comparison) items(area Area, subject, path string, old, next []string) {
	words, known := itemWords[path]
	switch {
	case subject == "":
		subject = path
		if !known {
			words = [2]string{"has %s now", "no longer has %s"}
		}
	case !known:
		words = [2]string{"has %s in " + keyOfItem(path), "no longer has %s in " + keyOfItem(path)}
	}
	for _, item := range without(next, old) {
		c.add(area, Gains, subject, words[0], item)
	}
	for _, item := range without(old, next) {
		c.add(area, Loses, subject, words[1], item)
	}
}

// effectOf says what a change is to whom the field is about.
func effectOf(path string, old, next any) Effect {
	if somebodysLoss[path] {
		old, next = next, old
	}
	unset, known := somebodysGain[path]
	if !known && !somebodysLoss[path] {
		return Changes
	}
	before, ok1 := rank(old, unset)
	now, ok2 := rank(next, unset)
	if !ok1 || !ok2 {
		return Changes
	}
	return moreOrLess(before, now)
}

// rank is how much a value allows.
func rank(value any, unset float64) (float64, bool) {
	switch v := value.(type) {
	case nil:
		if unset == 0 {
			return maxAmount, true
		}
		return unset, true
	case int:
		return float64(v), true
	case []field: // in the place of the word off, or of nothing
		return 1, true
	case word:
		if size, err := parseSize(string(v)); err == nil {
			return float64(size), true
		}
		if number, err := strconv.ParseFloat(string(v), 64); err == nil {
			return number, true
		}
	}
	r, ok := ranks[value]
	return r, ok
}

// fieldText writes a value in a sentence.
func fieldText(value any) string {
	switch v := value.(type) {
	case nil:
		return "not set"
	case []field:
		var all []string
		for _, f := range v {
			all = append(all, f.key+" "+fieldText(f.value))
		}
		return strings.Join(all, ", ")
	case [][]field:
		all := make([]string, len(v))
		for i, item := range v {
			all[i] = fieldText(item)
		}
		return fieldText(all)
	case []string:
		if len(v) == 0 {
			return "empty"
		}
		return clipped(strings.Join(v, ", "))
	case map[string]word:
		return mapText(v, func(w word) string { return string(w) })
	case map[string]int64:
		return mapText(v, func(n int64) string { return strconv.FormatInt(n, 10) })
	case string:
		return clipped(v)
	}
	return valueText(value)
}

func mapText[T any](m map[string]T, text func(T) string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		all = append(all, key+" "+text(m[key]))
	}
	return clipped(strings.Join(all, ", "))
}

// clipped keeps a value on its line.
func clipped(text string) string {
	const most = 400
	if len(text) > most {
		text = text[:most] + "..."
	}
	return unquoted(text)
}
