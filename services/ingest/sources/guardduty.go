package sources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/guardduty"
	"github.com/aws/aws-sdk-go-v2/service/guardduty/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("guardduty", "Polls findings of GuardDuty; for many of them EventBridge or its S3 export are better.", defaultGuardDuty, openGuardDuty)
}

var errFindings = fault.Define("ingest.bad_findings", fault.Retry,
	"none needed if it passes; else report it: GuardDuty answered with something that is no list of findings")

// GuardDutyConfig configures the guardduty source. Source: features DEV-22, DEV-115
// to DEV-118; formats F-13.
type GuardDutyConfig struct {
	PollConfig
	// Regions whose findings are read. Empty: the one of aws.region, else as the SDK
	// finds it.
	Regions []string `yaml:"regions"`
	// Detectors to read, by id. Empty: those that there are in each region.
	Detectors []string `yaml:"detectors"`
	// StartTime: findings that were updated since then are read the first time, as in
	// RFC 3339. Empty: from now on.
	StartTime string `yaml:"start_time"`
	// Overlap is read again at each pull, for findings that could be seen only later
	// than their update. What was known is left out. Unit: duration, 0s to 24h.
	Overlap time.Duration `yaml:"overlap"`
	// SkipArchived leaves archived findings out, as EventBridge and the S3 export do.
	SkipArchived bool `yaml:"skip_archived"`
	// Discovery is how often the detectors are listed anew. Unit: duration, at least 10s.
	Discovery time.Duration `yaml:"discovery"`
	// AWS is the access to GuardDuty.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultGuardDuty() GuardDutyConfig {
	return GuardDutyConfig{PollConfig: defaultPoll(time.Minute), Overlap: 10 * time.Minute, Discovery: 15 * time.Minute}
}

// Validate reports every problem, each with the key to change.
func (c GuardDutyConfig) Validate() error {
	var p config.Problems
	c.check(&p)
	checkRegions(&p, c.Regions)
	for i, d := range c.Detectors {
		p.Need(d != "" && len(d) <= 300 && !slices.Contains(c.Detectors[:i], d), "detectors["+strconv.Itoa(i)+"]", "write the id of a detector once")
	}
	checkStart(&p, c.StartTime)
	p.Need(c.Overlap >= 0 && c.Overlap <= 24*time.Hour, "overlap", "use 0s to 24h, e.g. 10m")
	p.Need(c.Discovery >= 10*time.Second, "discovery", "use 10s or more")
	return p.Err()
}

// The calls. GuardDuty tells no quotas; these are far from what throttles it.
var (
	callDetectors    = target{api: "guardduty:ListDetectors", limit: "guardduty", rate: 5}
	callListFindings = target{api: "guardduty:ListFindings", limit: "guardduty", rate: 5}
	callGetFindings  = target{api: "guardduty:GetFindings", limit: "guardduty", rate: 5}
)

const (
	// findingsPage is the most ids in a page, and the most findings in a call.
	findingsPage = 50
	// maxFindingsBody bounds an answer of GetFindings. Unit: bytes.
	maxFindingsBody = 32 << 20
	// rememberedFindings bounds the ids that are remembered. About 500 KiB.
	rememberedFindings = 10_000
)

// guardDutyAPI polls detectors, a shard each. In order of their last update, from the
// cursor on:
//
//	ListFindings ≤ 50 ids ─▶ GetFindings ─▶ store ─▶ cursor = the last one's updatedAt
//	       ▲ since then, without a page token ──────────┘
//
// GuardDuty pages by position, and a finding that is updated moves to the end: with
// page tokens, another one would slip into a page that was read. So tokens are used
// only among findings that were updated in the last overlap, which are read again
// anyway, and among those of the same millisecond.
type guardDutyAPI struct {
	cfg     GuardDutyConfig
	format  string
	regions []string
	clients map[string]*guardduty.Client
	known   *idSet

	mu     sync.Mutex
	listed map[string][]string // detectors by region, as they were listed last
}

// detector is the data of a shard. One without an id stands for a region whose
// detectors could not be listed.
type detector struct{ region, id string }

func openGuardDuty(ctx context.Context, cfg GuardDutyConfig, deps Deps) (Source, error) {
	base, err := pollAWS(ctx, cfg.AWS)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	s := &guardDutyAPI{
		cfg: cfg, format: formatOr(deps, "guardduty"), clients: map[string]*guardduty.Client{}, known: newIDSet(rememberedFindings),
		listed: map[string][]string{},
	}
	if s.regions, err = regionsOf(base, cfg.Regions); err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	for _, r := range s.regions {
		s.clients[r] = guardduty.NewFromConfig(base, func(o *guardduty.Options) { o.Region = r })
	}
	return openPoller(deps, cfg.PollConfig.of(cfg.AWS), s)
}

// plan implements poller: a shard for each detector.
func (s *guardDutyAPI) plan(ctx context.Context, c *caller) (plan, error) {
	p := plan{again: s.cfg.Discovery}
	for _, region := range s.regions {
		ids, err := s.detectors(ctx, c, region)
		if err != nil && c.stopped() {
			return plan{}, err
		}
		if err != nil { // a shard stands for the region, and shows the error
			p.shards = append(p.shards, shard{name: region + ":", data: detector{region: region}})
			s.mu.Lock()
			ids = s.listed[region]
			s.mu.Unlock()
		}
		for _, id := range ids {
			p.shards = append(p.shards, shard{name: region + ":" + id, data: detector{region, id}})
		}
	}
	return p, nil
}

func (s *guardDutyAPI) detectors(ctx context.Context, c *caller, region string) ([]string, error) {
	if len(s.cfg.Detectors) > 0 {
		return s.cfg.Detectors, nil
	}
	var ids []string
	in := &guardduty.ListDetectorsInput{}
	for {
		var out *guardduty.ListDetectorsOutput
		err := c.call(ctx, callDetectors.at(region), func(ctx context.Context) (err error) {
			out, err = s.clients[region].ListDetectors(ctx, in)
			return err
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, out.DetectorIds...)
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			break
		}
	}
	s.mu.Lock()
	s.listed[region] = ids
	s.mu.Unlock()
	return ids, nil
}

// findingCursor is how far a detector has been read.
type findingCursor struct {
	// Since: all findings that were updated before have been read. Unix ms.
	Since int64 `json:"since"`
}

// pull implements poller.
func (s *guardDutyAPI) pull(ctx context.Context, p *pull) error {
	d, _ := p.shard.data.(detector)
	if d.id == "" {
		_, err := s.detectors(ctx, p.caller, d.region)
		if err == nil {
			p.s.planNow()
		}
		return err
	}
	at, err := p.position(ctx, "")
	if err != nil {
		return err
	}
	began := time.Now()
	settled := began.Add(-s.cfg.Overlap).UnixMilli()
	var cur findingCursor
	if !at.read(&cur) {
		cur.Since = startOf(s.cfg.StartTime, began).UnixMilli()
		if err := at.move(ctx, &cur); err != nil { // "now" must not move on with each pull
			return err
		}
	}
	since, token, newest := cur.Since, "", cur.Since
	for !p.stopped() {
		ids, next, err := s.ids(ctx, p, d, since, 0, token)
		if err != nil {
			return err
		}
		found, err := s.findings(ctx, p, d, ids)
		if err != nil {
			return err
		}
		last := since // of the page that will not be updated unseen
		for _, f := range found {
			newest = max(newest, f.updated)
			if f.updated <= settled {
				last = max(last, f.updated)
			}
		}
		if last > since {
			since, token, cur.Since = last, "", last
			if err := at.move(ctx, &cur); err != nil {
				return err
			}
		} else {
			token = next
		}
		if next == "" {
			break
		}
	}
	if p.stopped() {
		return nil
	}
	p.reached(began.Add(-s.cfg.Overlap))
	// Not beyond settled: a finding that was updated during the pull, or by a clock that
	// is ahead, must not take from the overlap. Source: formats F-13.
	if back := min(newest-s.cfg.Overlap.Milliseconds(), settled); back > cur.Since {
		cur.Since = back
		return at.move(ctx, &cur)
	}
	return nil
}

// ids lists a page of findings that were updated since, and before until unless that is 0,
// oldest first.
func (s *guardDutyAPI) ids(ctx context.Context, p *pull, d detector, since, until int64, token string) (ids []string, next string, err error) {
	in := &guardduty.ListFindingsInput{
		DetectorId: &d.id, MaxResults: aws.Int32(findingsPage),
		FindingCriteria: &types.FindingCriteria{Criterion: map[string]types.Condition{"updatedAt": {GreaterThanOrEqual: &since}}},
		SortCriteria:    &types.SortCriteria{AttributeName: aws.String("updatedAt"), OrderBy: types.OrderByAsc},
	}
	if until > 0 {
		in.FindingCriteria.Criterion["updatedAt"] = types.Condition{GreaterThanOrEqual: &since, LessThan: &until}
	}
	if s.cfg.SkipArchived {
		in.FindingCriteria.Criterion["service.archived"] = types.Condition{Equals: []string{"false"}}
	}
	if token != "" {
		in.NextToken = &token
	}
	var out *guardduty.ListFindingsOutput
	err = p.call(ctx, callListFindings.at(d.region), func(ctx context.Context) (err error) {
		out, err = s.clients[d.region].ListFindings(ctx, in)
		var refused *types.BadRequestException
		if token != "" && errors.As(err, &refused) { // the same without the token was taken
			return errPageGone.New(err, "read the next page of findings")
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return out.FindingIds, aws.ToString(out.NextToken), nil
}

// foundFinding is what is read of a finding here; the rest is for the format.
type foundFinding struct {
	id      string
	updated int64 // Unix ms, 0 when it does not tell
}

// findings gets findings by their ids and stores those that are new.
func (s *guardDutyAPI) findings(ctx context.Context, p *pull, d detector, ids []string) ([]foundFinding, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var raw rawFindings
	err := p.call(ctx, callGetFindings.at(d.region), func(ctx context.Context) error {
		raw = rawFindings{}
		_, err := s.clients[d.region].GetFindings(ctx, &guardduty.GetFindingsInput{DetectorId: &d.id, FindingIds: ids}, raw.keep)
		return err
	})
	if err != nil {
		return nil, err
	}
	pg := &page{api: callGetFindings.api, resource: d.id, region: d.region, format: s.format, size: raw.size}
	var found []foundFinding
	var fresh []messages.ID
	for _, doc := range raw.Findings {
		var f struct {
			ID        string `json:"id"`
			UpdatedAt string `json:"updatedAt"`
		}
		if err := json.Unmarshal(doc, &f); err != nil {
			return nil, errFindings.New(err, "read a finding of detector %s", d.id)
		}
		one := foundFinding{id: f.ID}
		if t, err := time.Parse(time.RFC3339, f.UpdatedAt); err == nil {
			one.updated = t.UnixMilli()
		}
		found = append(found, one)
		id := messages.NewID([]byte(d.region), []byte(f.ID), []byte(f.UpdatedAt))
		if f.ID != "" && s.known.has(id) {
			continue
		}
		fresh = append(fresh, id)
		pg.records = append(pg.records, doc)
	}
	if len(pg.records) == 0 {
		return found, nil
	}
	if err := p.store(ctx, pg); err != nil {
		return nil, err
	}
	s.known.add(fresh)
	return found, nil
}

// rawFindings keeps the findings of an answer as they came over the wire. The SDK's
// structs would lose fields that they do not know, and print the others under other
// names than GuardDuty itself. Source: formats F-13.
type rawFindings struct {
	Findings []json.RawMessage `json:"findings"`
	size     int64
}

// keep is an option of a call.
func (f *rawFindings) keep(o *guardduty.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		// The last in the row is the first to see the answer.
		return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("RawFindings", f.read), middleware.After)
	})
}

func (f *rawFindings) read(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	out middleware.DeserializeOutput, md middleware.Metadata, err error,
) {
	out, md, err = next.HandleDeserialize(ctx, in)
	response, ok := out.RawResponse.(*smithyhttp.Response)
	if err != nil || !ok || response.StatusCode != 200 {
		return out, md, err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxFindingsBody+1))
	_ = response.Body.Close() // what matters was read
	switch {
	case err != nil:
		return out, md, err
	case len(body) > maxFindingsBody:
		return out, md, errFindings.New(nil, "read an answer of %s of more than %d bytes", callGetFindings.api, maxFindingsBody)
	}
	f.size = int64(len(body))
	if err := json.Unmarshal(body, f); err != nil {
		return out, md, errFindings.New(err, "read an answer of %s", callGetFindings.api)
	}
	// The SDK need not take apart what is handed on as it is.
	response.Body = io.NopCloser(bytes.NewReader([]byte(`{"findings":[]}`)))
	return out, md, nil
}
