package config

import (
	"sort"
	"strings"
)

// nearest returns the name that s was probably meant to be, empty when none is
// close.
func nearest(s string, names []string) string {
	if len(s) > 64 { // no name is that long
		return ""
	}
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(s))
	}
	best, least := "", max(len(s)/3, 1)+1
	for _, name := range names {
		d := distance(plain(s), plain(name))
		if d < least {
			best, least = name, d
		}
	}
	return best
}

// distance counts the letters to put in, take out, change or swap with the next
// one to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}

// choose writes the fix for a name that is not one of names.
func choose(s string, names []string) string {
	if len(names) == 0 {
		return "remove it"
	}
	if n := nearest(s, names); n != "" {
		return "did you mean " + n + "?"
	}
	sorted := append([]string(nil), names...)
	sort.Strings(sorted)
	return "use one of " + strings.Join(sorted, ", ")
}
