package cloud

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxFindings is the most of one page and of one GetFindings. Source: Amazon
// GuardDuty API Reference, ListFindings and GetFindings; formats F-13.
const maxFindings = 50

// guardDutyAPI is the GuardDuty of all regions.
type guardDutyAPI struct {
	mu      sync.Mutex
	regions map[string]map[string]map[string]*finding // region → detector → id
	tokens  pageTokens
	page    int // findings of a page, 0 for those asked for
}

// finding is one finding as it was updated last.
type finding struct {
	id       string
	updated  int64 // Unix ms
	archived bool
	doc      json.RawMessage
}

func init() { registerAPI(func(*Cloud) api { return &guardDutyAPI{} }) }

// CreateDetector makes a detector in a region; "" is the region of the Cloud.
func (c *Cloud) CreateDetector(region, id string) {
	s := apiOf[*guardDutyAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detector(c.regionOr(region), id)
	c.changed.fire()
}

func (s *guardDutyAPI) detector(region, id string) map[string]*finding {
	if s.regions == nil {
		s.regions = map[string]map[string]map[string]*finding{}
	}
	if s.regions[region] == nil {
		s.regions[region] = map[string]map[string]*finding{}
	}
	if s.regions[region][id] == nil {
		s.regions[region][id] = map[string]*finding{}
	}
	return s.regions[region][id]
}

// PutFinding stores a finding, as JSON with id and updatedAt, in the place of the
// one with the same id. The detector is made if it is not there. It fails with
// demo.refused.
func (c *Cloud) PutFinding(region, detector string, doc []byte) error {
	var f struct {
		ID        string    `json:"id"`
		UpdatedAt time.Time `json:"updatedAt"`
		Service   struct {
			Archived bool `json:"archived"`
		} `json:"service"`
	}
	if err := json.Unmarshal(doc, &f); err != nil || f.ID == "" || f.UpdatedAt.IsZero() {
		return errRefused.New(err, "put a finding of %d bytes: it needs an id and updatedAt", len(doc))
	}
	s := apiOf[*guardDutyAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detector(c.regionOr(region), detector)[f.ID] = &finding{
		id: f.ID, updated: f.UpdatedAt.UnixMilli(), archived: f.Service.Archived, doc: bytes.Clone(doc),
	}
	c.changed.fire()
	return nil
}

// SetFindingPaging bounds the ids in a page of ListFindings; 0 is as the request asks.
func (c *Cloud) SetFindingPaging(ids int) {
	s := apiOf[*guardDutyAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.page = ids
}

func (s *guardDutyAPI) scope() string { return "guardduty" }

// operation implements api.
func (s *guardDutyAPI) operation(r *http.Request) string {
	if signedFor(r) != s.scope() {
		return ""
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "detector" {
		switch what := strings.Join(parts[min(len(parts), 2):], "/"); {
		case r.Method == http.MethodGet && len(parts) == 1:
			return "ListDetectors"
		case r.Method == http.MethodPost && what == "findings":
			return "ListFindings"
		case r.Method == http.MethodPost && what == "findings/get":
			return "GetFindings"
		}
	}
	return "Unknown"
}

// about implements apiNamer: the detector.
func (s *guardDutyAPI) about(call *apiCall) string {
	parts := strings.Split(strings.Trim(call.http.URL.Path, "/"), "/")
	if len(parts) < 2 {
		return ""
	}
	id, err := url.PathUnescape(parts[1])
	if err != nil {
		return ""
	}
	return id
}

// findingRequest holds the parameters of ListFindings and GetFindings.
type findingRequest struct {
	FindingCriteria *struct {
		Criterion map[string]findingCondition `json:"criterion"`
	} `json:"findingCriteria"`
	SortCriteria *struct {
		AttributeName string `json:"attributeName"`
		OrderBy       string `json:"orderBy"`
	} `json:"sortCriteria"`
	MaxResults *int     `json:"maxResults"`
	NextToken  string   `json:"nextToken"`
	FindingIDs []string `json:"findingIds"`
}

type findingCondition struct {
	GreaterThanOrEqual *int64   `json:"greaterThanOrEqual"`
	GreaterThan        *int64   `json:"greaterThan"`
	LessThanOrEqual    *int64   `json:"lessThanOrEqual"`
	LessThan           *int64   `json:"lessThan"`
	Equals             []string `json:"equals"`
}

func findingError(format string) *apiError {
	return &apiError{status: http.StatusBadRequest, code: "BadRequestException", message: "The request is rejected because " + format + "."}
}

func errFindingToken() *apiError { return findingError("the input token is invalid or has expired") }

// serve implements api.
func (s *guardDutyAPI) serve(_ context.Context, call *apiCall) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if call.op == "ListDetectors" {
		return s.detectors(call)
	}
	if call.op == "Unknown" {
		return nil, &apiError{status: http.StatusNotFound, code: "UnknownOperationException", message: "This endpoint does not implement " + call.http.Method + " " + call.http.URL.Path + "."}
	}
	r := &findingRequest{}
	if e := call.decode(r); e != nil {
		return nil, e
	}
	id := s.about(call)
	all, there := s.regions[call.region][id]
	if !there {
		return nil, findingError("the input detectorId is not owned by the current account")
	}
	if call.op == "GetFindings" {
		return getFindings(all, r)
	}
	return s.list(all, call.region+" "+id, r)
}

func (s *guardDutyAPI) detectors(call *apiCall) (any, *apiError) {
	q := call.http.URL.Query()
	limit := maxFindings
	if text := q.Get("maxResults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxFindings {
			return nil, findingError("the parameter maxResults is out of range")
		}
		limit = n
	}
	var ids []string
	for id := range s.regions[call.region] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	ids, token, e := nextPage(&s.tokens, "detectors "+call.region, q.Get("nextToken"), ids, limit, errFindingToken())
	if e != nil {
		return nil, e
	}
	// Other than most services, it answers with an empty token at the end.
	return map[string]any{"detectorIds": notNil(ids), "nextToken": token}, nil
}

func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// matches tells whether f fits the criteria.
func (r *findingRequest) matches(f *finding) bool {
	if r.FindingCriteria == nil {
		return true
	}
	for name, c := range r.FindingCriteria.Criterion {
		switch name {
		case "updatedAt":
			if c.GreaterThanOrEqual != nil && f.updated < *c.GreaterThanOrEqual || c.GreaterThan != nil && f.updated <= *c.GreaterThan ||
				c.LessThanOrEqual != nil && f.updated > *c.LessThanOrEqual || c.LessThan != nil && f.updated >= *c.LessThan {
				return false
			}
		case "service.archived":
			if len(c.Equals) > 0 && !slices.Contains(c.Equals, strconv.FormatBool(f.archived)) {
				return false
			}
		}
	}
	return true
}

// list pages by position: a finding that is updated between two pages moves to the
// end, and the one that takes its place in the page before is not seen.
func (s *guardDutyAPI) list(all map[string]*finding, of string, r *findingRequest) (any, *apiError) {
	if len(r.FindingIDs) > 0 {
		return nil, findingError("the parameter findingIds is not one of ListFindings")
	}
	limit := maxFindings
	if r.MaxResults != nil {
		if limit = *r.MaxResults; limit < 1 || limit > maxFindings {
			return nil, findingError("the parameter maxResults is out of range")
		}
	}
	if s.page > 0 {
		limit = min(limit, s.page)
	}
	if r.FindingCriteria != nil {
		for name := range r.FindingCriteria.Criterion {
			if name != "updatedAt" && name != "service.archived" {
				return nil, findingError("this endpoint knows no criterion " + name)
			}
		}
	}
	var fit []*finding
	for _, f := range all {
		if r.matches(f) {
			fit = append(fit, f)
		}
	}
	// Without sortCriteria nobody can rely on an order.
	slices.SortFunc(fit, func(a, b *finding) int { return strings.Compare(b.id, a.id) })
	if c := r.SortCriteria; c != nil {
		if c.AttributeName != "updatedAt" || c.OrderBy != "ASC" && c.OrderBy != "DESC" {
			return nil, findingError("sortCriteria is invalid")
		}
		slices.SortFunc(fit, func(a, b *finding) int {
			return cmp.Or(cmp.Compare(a.updated, b.updated), strings.Compare(a.id, b.id))
		})
		if c.OrderBy == "DESC" {
			slices.Reverse(fit)
		}
	}
	ids := make([]string, len(fit))
	for i, f := range fit {
		ids[i] = f.id
	}
	criteria, _ := json.Marshal([]any{r.FindingCriteria, r.SortCriteria}) // they were read from JSON
	ids, token, e := nextPage(&s.tokens, "findings "+of+string(criteria), r.NextToken, ids, limit, errFindingToken())
	if e != nil {
		return nil, e
	}
	return map[string]any{"findingIds": notNil(ids), "nextToken": token}, nil
}

func getFindings(all map[string]*finding, r *findingRequest) (any, *apiError) {
	if n := len(r.FindingIDs); n == 0 || n > maxFindings {
		return nil, findingError("the parameter findingIds has " + strconv.Itoa(n) + " members, and takes 1 to " + strconv.Itoa(maxFindings))
	}
	if r.FindingCriteria != nil || r.MaxResults != nil || r.NextToken != "" {
		return nil, findingError("it has parameters that are not of GetFindings")
	}
	// Byte by byte as they were put: a reader may be asked to change nothing.
	body := []byte(`{"findings":[`)
	first := len(body)
	for _, id := range r.FindingIDs {
		if f := all[id]; f != nil {
			if len(body) > first {
				body = append(body, ',')
			}
			body = append(body, f.doc...)
		}
	}
	return rawAnswer{contentType: "application/json", body: append(body, "]}"...)}, nil
}
