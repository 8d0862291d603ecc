package cloud

import (
	"cmp"
	"encoding/base64"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// pageTokens issues the tokens by which an API gives page after page, and knows
// its own again. A token goes with the parameters that it was issued for.
type pageTokens struct{ age atomic.Uint64 }

// ExpirePageTokens makes every nextToken that the APIs have issued so far invalid.
func (c *Cloud) ExpirePageTokens() {
	for _, t := range []*pageTokens{&apiOf[*logsAPI](c).tokens, &apiOf[*metricsAPI](c).tokens, &apiOf[*guardDutyAPI](c).tokens} {
		t.age.Add(1)
	}
}

// issue makes the token of a position within what the parameters "of" ask for.
func (p *pageTokens) issue(of, position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatUint(p.age.Load(), 10) + "|" + digest(of) + "|" + position))
}

// open returns the position of a token; "" for the first page, which has none. A
// token that has expired, or goes with other parameters, is answered with refusal.
func (p *pageTokens) open(of, token string, refusal *apiError) (string, *apiError) {
	if token == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.SplitN(string(text), "|", 3)
	if err != nil || len(parts) != 3 || parts[0] != strconv.FormatUint(p.age.Load(), 10) || parts[1] != digest(of) {
		return "", refusal
	}
	return parts[2], nil
}

func digest(s string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // never fails
	return strconv.FormatUint(h.Sum64(), 36)
}

// nextPage returns up to limit of the sorted names behind those of a token, and the
// token of the rest; "" for none.
func nextPage(p *pageTokens, of, token string, names []string, limit int, refusal *apiError) ([]string, string, *apiError) {
	after, e := p.open(of, token, refusal)
	if e != nil {
		return nil, "", e
	}
	from := 0
	if token != "" {
		n, err := strconv.Atoi(after)
		if err != nil {
			return nil, "", refusal
		}
		from = min(n, len(names))
	}
	if len(names)-from <= limit {
		return names[from:], "", nil
	}
	return slices.Clone(names[from : from+limit]), p.issue(of, strconv.Itoa(from+limit)), nil
}

// withToken adds a token under name unless it is empty.
func withToken(m map[string]any, name, token string) map[string]any {
	if token != "" {
		m[name] = token
	}
	return m
}

// regionOr returns region, or that of the Cloud when it is empty.
func (c *Cloud) regionOr(region string) string { return cmp.Or(region, c.opts.Region) }
