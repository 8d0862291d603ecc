package formats

import "slices"

// News is something that a record has and its format does not know. The record is an
// event all the same.
type News struct {
	// Kind is one of the kinds below, Name which column, type or version it is.
	Kind, Name string
}

// Kinds of news.
const (
	NewsColumn  = "column"
	NewsType    = "type"
	NewsVersion = "version"
)

// maxNews bounds the news of one record. One with more is nonsense, or of another format.
const maxNews = 32

// newsOf are the columns of a layout that are not known. known is asked for names as they
// stand in the header.
func newsOf(names []string, known func(name string) bool) (news []News) {
	for _, name := range names {
		n := News{NewsColumn, nameOf(name)}
		if !known(name) && name != "" && len(news) < maxNews && !slices.Contains(news, n) {
			news = append(news, n)
		}
	}
	return news
}

// nameOf cuts a name to the size that names have.
func nameOf(name string) string {
	if len(name) > maxNameSize {
		name = name[:maxNameSize]
	}
	return name
}

// judge tells what of the versions, or types, of records is new. It remembers the last one,
// so that each is judged once while they are equal. Not for concurrent use.
type judge struct {
	kind  string
	known func(value []byte) bool
	last  string
	isNew bool
	names names
}

// meet adds value to news if it is new; nothing never is.
func (j *judge) meet(news []News, value []byte) ([]News, bool) {
	if len(value) == 0 {
		return news, false
	}
	if string(value) != j.last {
		if j.last = j.names.of(value); j.last == "" {
			j.last = "(too long)"
		}
		j.isNew = !j.known(value)
	}
	if j.isNew {
		news = append(news, News{j.kind, j.last})
	}
	return news, j.isNew
}

func newVersion(known func(version []byte) bool) judge { return judge{kind: NewsVersion, known: known} }

func newType(known func(value []byte) bool) judge { return judge{kind: NewsType, known: known} }
