package sources

import (
	"errors"
	"iter"
	"strings"
	"time"
)

// layout is a prefix of keys in which parts of a time and folders are left open.
type layout struct {
	text string
	// unit is the smallest part of the time in it, 0 for none. A day stands for
	// itself: months and years are told apart by step.
	unit byte // 'y', 'M', 'd', 'H'
}

// placeholders and how Go writes them, each needing the one before.
var placeholders = []struct {
	name, form string
	unit       byte
}{{"{yyyy}", "2006", 'y'}, {"{MM}", "01", 'M'}, {"{dd}", "02", 'd'}, {"{HH}", "15", 'H'}}

var (
	errPlaceholder = errors.New("there is a brace that belongs to none of {yyyy}, {MM}, {dd} and {HH}")
	errGap         = errors.New("a part of the time is missing: {HH} needs {dd}, that {MM}, and that {yyyy}")
	errStar        = errors.New("* stands for a whole folder: it needs a slash, or the beginning, before it and a slash after it")
	errSlash       = errors.New("a key begins with no slash")
	errStart       = errors.New("before 1970")
)

func parseLayout(prefix string) (layout, error) {
	l := layout{text: prefix}
	rest, missing := prefix, false
	for _, p := range placeholders {
		found := strings.Contains(rest, p.name)
		switch {
		case found && missing:
			return l, errGap
		case found:
			l.unit = p.unit
		default:
			missing = true
		}
		rest = strings.ReplaceAll(rest, p.name, "")
	}
	switch {
	case strings.ContainsAny(rest, "{}"):
		return l, errPlaceholder
	case strings.HasPrefix(prefix, "/"):
		return l, errSlash
	}
	for i := range len(prefix) {
		if prefix[i] == '*' && (i > 0 && prefix[i-1] != '/' || i+1 == len(prefix) || prefix[i+1] != '/') {
			return l, errStar
		}
	}
	return l, nil
}

func (l layout) dated() bool { return l.unit != 0 }

func (l layout) starred() bool { return strings.Contains(l.text, "*") }

// head is what all keys begin with.
func (l layout) head() string {
	if i := strings.IndexAny(l.text, "{*"); i >= 0 {
		return l.text[:i]
	}
	return l.text
}

// render puts a time in, in UTC. Stars stay.
func (l layout) render(t time.Time) string {
	s := l.text
	for _, p := range placeholders {
		s = strings.ReplaceAll(s, p.name, t.UTC().Format(p.form))
	}
	return s
}

// times are those whose folders can hold what was written from one time to another:
// from one unit before, since folders are named for what is in them. One time where
// there is none in the prefix.
func (l layout) times(from, to time.Time) iter.Seq[time.Time] {
	return func(yield func(time.Time) bool) {
		if !l.dated() {
			yield(to)
			return
		}
		for t := l.step(l.floor(from), -1); !t.After(to); t = l.step(t, 1) {
			if !yield(t) {
				return
			}
		}
	}
}

func (l layout) floor(t time.Time) time.Time {
	t = t.UTC()
	switch l.unit {
	case 'y':
		return time.Date(t.Year(), 1, 1, 0, 0, 0, 0, time.UTC)
	case 'M':
		return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	case 'd':
		return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	}
	return t.Truncate(time.Hour)
}

func (l layout) step(t time.Time, n int) time.Time {
	switch l.unit {
	case 'y':
		return t.AddDate(n, 0, 0)
	case 'M':
		return t.AddDate(0, n, 0)
	case 'd':
		return t.AddDate(0, 0, n)
	}
	return t.Add(time.Duration(n) * time.Hour)
}

// cutStar cuts a prefix at its first star: what comes before it, and what after.
func cutStar(prefix string) (head, tail string, found bool) {
	head, tail, found = strings.Cut(prefix, "*")
	return head, strings.TrimPrefix(tail, "/"), found
}
