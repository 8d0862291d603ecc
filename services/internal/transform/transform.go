// Package transform changes documents: what the rules of route and the settings of
// destinations do to an event on its way.
//
// What is compiled here works on the bytes of the document where it stands, and
// appends the changed document to a buffer of the caller. It may be used
// concurrently.
//
// Source: RFC 8259; design section 5.
package transform

// splitPath cuts a path at its dots, but for those after a backslash.
func splitPath(path string) []string {
	words := []string{""}
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && i+1 < len(path):
			i++
			words[len(words)-1] += path[i : i+1]
		case c == '.':
			words = append(words, "")
		default:
			words[len(words)-1] += path[i : i+1]
		}
	}
	return words
}
