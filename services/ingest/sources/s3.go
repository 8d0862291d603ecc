package sources

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

func init() {
	define("s3", "Lists a bucket again and again and reads what is new: for buckets that send no notifications.",
		defaultS3, openS3)
}

var (
	errList = fault.Define("ingest.list_refused", fault.Retry,
		"grant s3:ListBucket on the bucket, and check its name, region and the prefix")
	errPrefixes = fault.Define("ingest.too_many_prefixes", fault.Retry,
		"write more of the prefix in place of *: it stands for more folders than can be listed one by one")
	errListYet = fault.Define("ingest.no_listing_yet", fault.Retry,
		"wait for the first listing; if none comes, check the network and whether another replica has the work")
	errSpanOpen = fault.Define("ingest.span_open", fault.Reject,
		"say from when on, with --from: a prefix with days or hours in it cannot be listed from the beginning of time")
	errListBus = fault.Define("ingest.listing_not_stored", fault.Retry,
		"look at the bus: penstock topology show; nothing is lost, the bucket is listed again from there")
)

// S3Config configures the s3 source.
type S3Config struct {
	// Bucket to list. Required.
	Bucket string `yaml:"bucket"`
	// Prefixes of the keys to list, each on its own; none lists the whole bucket. In
	// a prefix {yyyy}, {MM}, {dd} and {HH} stand for the parts of a time in UTC, so
	// that only the folders of late are listed, and * for one folder of any name, e.g.
	// 1234567_0abc/dnslogs/{yyyy}-{MM}-{dd}/ or AWSLogs/*/GuardDuty/*/{yyyy}/{MM}/{dd}/.
	Prefixes []string `yaml:"prefixes"`
	// StartTime is from when on objects are read, by the time at which they were
	// written. An earlier one than before lists from there again. Empty: from
	// look_back before the first start. RFC 3339, e.g. 2026-01-31T00:00:00Z.
	StartTime string `yaml:"start_time"`
	// Period from the beginning of one listing to the next. Unit: duration, at
	// least 1s.
	Period time.Duration `yaml:"period"`
	// LookBack is how late an object may show up: in a listing, after the time at
	// which it is said to be written, or in its folder, after the time the folder is
	// named for. What is later is not seen. Less than dedupe.window. Unit: duration,
	// at least 1m.
	LookBack time.Duration `yaml:"look_back"`
	// MinAge is how old an object must be before it is read. Unit: duration.
	MinAge time.Duration `yaml:"min_age"`
	// Ordered says that keys sort by the time at which they are written, so that a
	// listing may begin where it got to, less look_back. Not with placeholders.
	Ordered bool `yaml:"ordered"`
	// Keys are patterns with * (any run of characters, slashes included) and ?;
	// objects whose key matches none are ignored. Empty takes all.
	Keys []string `yaml:"keys"`
	// SkipKeys are patterns of keys to ignore, also where Keys takes them.
	SkipKeys []string `yaml:"skip_keys"`
	// Remember bounds the memory, for each prefix, of which objects of the time of
	// look_back were read. Those beyond are read again with each listing, and dropped
	// as duplicates. Unit: bytes, at least 64 KiB.
	Remember config.Bytes `yaml:"remember"`
	// AWS is the access to the bucket.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultS3() S3Config {
	return S3Config{Period: 5 * time.Minute, LookBack: 6 * time.Hour, Remember: 8 * config.MiB}
}

// Validate reports every problem, each with the key to change.
func (c S3Config) Validate() error {
	var p config.Problems
	p.Need(bucketName(c.Bucket), "bucket", "use a bucket's name, without s3://, arn: or a key")
	seen := map[string]bool{}
	for i, prefix := range c.Prefixes {
		key := "prefixes[" + strconv.Itoa(i) + "]"
		l, err := parseLayout(prefix)
		if err != nil {
			p.Add(key, err.Error(), "write it as in AWSLogs/*/{yyyy}/{MM}/{dd}/")
			continue
		}
		p.Need(!seen[prefix], key, "name each prefix once")
		seen[prefix] = true
		p.Need(!c.Ordered || !l.dated() && !l.starred(), "ordered", "leave it out: with placeholders in a prefix only the folders of late are listed anyway")
	}
	_, err := c.start()
	p.Need(err == nil, "start_time", "write a time as in 2026-01-31T00:00:00Z, not before 1970")
	p.Need(c.Period >= time.Second, "period", "use 1s or more, e.g. 5m")
	p.Need(c.LookBack >= time.Minute, "look_back", "use 1m or more, e.g. 6h")
	p.Need(c.MinAge >= 0 && c.MinAge <= c.LookBack, "min_age", "use 0s or a duration that is not longer than look_back")
	for i, pattern := range c.Keys {
		p.Need(pattern != "", "keys["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	for i, pattern := range c.SkipKeys {
		p.Need(pattern != "", "skip_keys["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	p.Need(c.Remember >= 64*config.KiB, "remember", "use 64 KiB or more")
	return p.Err()
}

// start is the configured start in Unix seconds, 0 for none.
func (c S3Config) start() (int64, error) {
	if c.StartTime == "" {
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339, c.StartTime)
	if err == nil && t.Unix() < 0 {
		err = errStart
	}
	return max(1, t.Unix()), err
}

// ObjectAWS implements [ObjectReader].
func (c S3Config) ObjectAWS() awsclient.Config { return c.AWS }

// Allows implements [ObjectReader].
func (c S3Config) Allows(bucket string) bool { return bucket == c.Bucket }

// Whole implements [ObjectReader].
func (c S3Config) Whole() (bucket, prefix string) {
	switch len(c.Prefixes) {
	case 0:
		return c.Bucket, ""
	case 1:
		return c.Bucket, c.Prefixes[0]
	}
	return "", ""
}

// Takes implements [ObjectReader].
func (c S3Config) Takes(key string) bool { return takes(c.Keys, c.SkipKeys, key) }

// callList is the call, as an IAM policy names it.
const callList = "s3:ListBucket"

const (
	// pageTimeout bounds one page of a listing.
	pageTimeout = time.Minute
	// saveEvery is how long what was announced may go without being written down.
	saveEvery = 5 * time.Second
	// maxFolders bounds what * stands for, in all prefixes of one time together.
	maxFolders = 10_000
)

// s3Source lists one bucket, prefix by prefix:
//
//	list a page ─▶ what is new ─▶ publish, facts ─▶ flush ─▶ cursor
//
// A prefix is leased: one replica lists it at a time. The cursor of a prefix holds
// the floor, the time before which all is done, and which objects since were
// announced. An object is new when it was written at or above the floor and was not
// announced; when a listing is through, the floor rises to its beginning, less
// look_back. So the order of names does not matter, nothing is kept of what is below
// the floor, and a listing that was broken off goes on at its last page.
//
// The same object may be announced by a queue too: fetch asks S3 which version it
// got, and the ids of its events are those of bucket, key and version, or ETag where
// there are no versions, whoever announced it.
type s3Source struct {
	cfg     S3Config
	deps    Deps
	client  *s3.Client
	log     *slog.Logger
	layouts map[string]layout

	mu      sync.Mutex
	trouble map[string]error // by prefix
	late    bool             // a drain ran out of time
}

func openS3(ctx context.Context, cfg S3Config, deps Deps) (Source, error) {
	client, err := awsclient.S3(ctx, cfg.AWS)
	if err != nil {
		return nil, errList.New(err, "open source %s", deps.Name)
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Drain <= 0 {
		deps.Drain = 20 * time.Second
	}
	if len(cfg.Prefixes) == 0 {
		cfg.Prefixes = []string{""}
	}
	s := &s3Source{
		cfg: cfg, deps: deps, client: client, log: deps.Log.With("source", deps.Name, "bucket", cfg.Bucket),
		layouts: map[string]layout{}, trouble: map[string]error{},
	}
	for _, prefix := range cfg.Prefixes {
		if s.layouts[prefix], err = parseLayout(prefix); err != nil {
			return nil, errList.New(err, "open source %s", deps.Name)
		}
	}
	mUp.WithLabelValues(deps.Name).Set(0)
	return s, nil
}

// Name implements [Source].
func (s *s3Source) Name() string { return s.deps.Name }

// Health implements [Source]. A replica that has no prefix to list is well.
func (s *s3Source) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, prefix := range s.cfg.Prefixes {
		if err := s.trouble[prefix]; err != nil {
			return err
		}
	}
	return nil
}

// Run implements [Source].
func (s *s3Source) Run(ctx context.Context) error {
	work, end := outlive(ctx, s.deps.Drain, errDrain.New(nil, "finish the page in hand of source %s", s.deps.Name))
	defer end()
	err := s.deps.Bus.Share(ctx, "s3."+s.deps.Name, func() []string { return s.cfg.Prefixes },
		func(ctx context.Context, prefix string) error { return s.keep(ctx, work, prefix) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late {
		s.late = false
		return context.Cause(work)
	}
	return err
}

// keep lists a prefix time and again while this replica has it.
func (s *s3Source) keep(ctx, work context.Context, prefix string) error {
	_ = s.set(prefix, errListYet.New(nil, "list s3://%s/%s", s.cfg.Bucket, prefix))
	defer func() { _ = s.set(prefix, nil) }()
	var refused backoff
	var p *lister
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if p == nil {
			p, err = s.open(ctx, prefix)
		}
		if err == nil {
			err = p.through(ctx, work)
		}
		switch {
		case errors.Is(err, topology.ErrCursorMoved):
			return nil // another replica has the prefix; Share sees to it
		case work.Err() != nil:
			s.mu.Lock()
			s.late = true
			s.mu.Unlock()
			return nil
		case ctx.Err() != nil:
			return nil // asked to stop
		case err != nil:
			s.failed(ctx, prefix, err)
			pause(ctx, refused.next())
		default:
			refused = backoff{}
			s.worked(ctx, prefix)
			mListed.WithLabelValues(s.deps.Name).Observe(time.Since(began).Seconds())
			pause(ctx, s.cfg.Period-time.Since(began))
		}
	}
	return nil
}

func (s *s3Source) set(prefix string, err error) (before error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.trouble[prefix]
	s.trouble[prefix] = err
	up := 1.0
	for _, e := range s.trouble {
		if e != nil {
			up = 0
		}
	}
	mUp.WithLabelValues(s.deps.Name).Set(up)
	return before
}

// failed notes a listing that broke off; a change is logged once.
func (s *s3Source) failed(ctx context.Context, prefix string, err error) {
	mCallErrors.WithLabelValues(s.deps.Name, callList, causeCode(err)).Inc()
	if before := s.set(prefix, err); before != nil && causeCode(before) == causeCode(err) {
		return
	}
	level := slog.LevelWarn
	if fault.ClassOf(errors.Unwrap(err)) == fault.Stop {
		level = slog.LevelError
	}
	s.log.Log(ctx, level, "a listing broke off; it is taken up again", "prefix", prefix, "code", causeCode(err), "err", err)
}

// causeCode is the code of what lies behind an error of the source's own.
func causeCode(err error) string {
	var f *fault.Error
	if errors.As(err, &f) && f.Cause != nil {
		if code := fault.CodeOf(f.Cause); code != "unknown" {
			return code
		}
	}
	return fault.CodeOf(err)
}

// answered notes that the bucket can be listed, though the listing goes on.
func (s *s3Source) answered(ctx context.Context, prefix string) {
	s.mu.Lock()
	before := s.trouble[prefix]
	s.mu.Unlock()
	if errors.Is(before, errListYet) || errors.Is(before, errList) {
		s.worked(ctx, prefix)
	}
}

func (s *s3Source) worked(ctx context.Context, prefix string) {
	if before := s.set(prefix, nil); before != nil && !errors.Is(before, errListYet) {
		s.log.InfoContext(ctx, "the listing works again", "prefix", prefix)
	}
}

// lister is the listing of a prefix, time and again.
type lister struct {
	s       *s3Source
	prefix  string
	layout  layout
	cursor  *topology.Cursor
	at      listing
	seen    *seen
	folders *folders
	saved   time.Time
	dirty   bool
	full    bool // the memory is full
}

// open reads how far the listing of a prefix is.
func (s *s3Source) open(ctx context.Context, prefix string) (*lister, error) {
	cursor, err := s.deps.Bus.Cursor(ctx, s.deps.Name, "s3/"+s.cfg.Bucket+"/"+prefix)
	if err != nil {
		return nil, errListBus.New(err, "read the cursor of s3://%s/%s", s.cfg.Bucket, prefix)
	}
	p := &lister{s: s, prefix: prefix, layout: s.layouts[prefix], cursor: cursor, saved: time.Now(), seen: newSeen(int(s.cfg.Remember))}
	if err := p.at.read(cursor.Value(), p.seen); err != nil {
		s.log.WarnContext(ctx, "the cursor of a listing cannot be read; the listing begins anew", "prefix", prefix, "err", err)
		p.at, p.seen = listing{}, newSeen(int(s.cfg.Remember))
	}
	return p, nil
}

// through lists the prefix from where the last listing broke off, or from its
// beginning. When ctx ends it stops after a page; work bounds that.
func (p *lister) through(ctx, work context.Context) error {
	p.folders = newFolders(p.s.cfg.Bucket, p.layout, p.page)
	if err := p.begin(ctx); err != nil {
		return err
	}
	err := p.run(ctx, work)
	if err == nil && ctx.Err() == nil {
		p.at.finish(p.s.cfg.LookBack)
		p.seen.forget(p.at.Floor)
		p.dirty = true
	}
	if p.dirty {
		// What was announced is written down also after an error.
		err = errors.Join(err, p.save(work))
	}
	return err
}

// begin sets the time of the pass, unless it goes on with one.
func (p *lister) begin(ctx context.Context) error {
	start, _ := p.s.cfg.start() // Validate has reported it
	if !p.at.fresh() && start != 0 && (p.at.Start == 0 || start < p.at.Start) && start < p.at.Floor {
		p.s.log.InfoContext(ctx, "start_time was set to an earlier time: the listing begins there", "prefix", p.prefix)
		p.at = listing{}
	}
	if p.at.Began != 0 {
		return nil
	}
	// The service's clock: it is the one that objects are dated by.
	_, now, err := p.page(ctx, &s3.ListObjectsV2Input{Prefix: aws.String(p.layout.head()), MaxKeys: aws.Int32(1)})
	if err != nil {
		return err
	}
	fresh := p.at.fresh()
	p.at.Began = now.Unix()
	if fresh {
		p.at.Start, p.at.Floor = start, start
		if start == 0 {
			p.at.Floor = now.Add(-p.s.cfg.LookBack).Unix()
		}
	}
	return nil
}

// run lists every folder of the prefix.
func (p *lister) run(ctx, work context.Context) error {
	from := time.Unix(p.at.Floor, 0).UTC()
	for t := range p.layout.times(from, time.Unix(p.at.Began, 0).UTC()) {
		if p.layout.dated() && t.Unix() < p.at.Time {
			continue // done before the break
		}
		if t.Unix() > p.at.Time && p.layout.dated() {
			p.at.Time, p.at.After = t.Unix(), ""
		}
		folders, err := p.folders.expand(ctx, p.layout.render(t))
		if err != nil {
			return err
		}
		for _, folder := range folders {
			if p.at.After > folder && !strings.HasPrefix(p.at.After, folder) {
				continue
			}
			if err := p.list(ctx, work, folder); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil // asked to stop, after a page
			}
		}
	}
	return nil
}

// list announces what is new below a folder, page by page.
func (p *lister) list(ctx, work context.Context, folder string) error {
	in := &s3.ListObjectsV2Input{Prefix: &folder}
	if after := p.at.After; after != "" && strings.HasPrefix(after, folder) {
		in.StartAfter = &after
	} else if p.s.cfg.Ordered && p.at.From != "" {
		in.StartAfter = aws.String(p.at.From)
	}
	for {
		out, now, err := p.page(ctx, in)
		if err != nil {
			return err
		}
		if err := p.announce(work, out.Contents, now); err != nil {
			return err
		}
		if n := len(out.Contents); n > 0 {
			p.at.After = aws.ToString(out.Contents[n-1].Key)
		}
		if p.dirty && time.Since(p.saved) >= saveEvery {
			if err := p.save(work); err != nil {
				return err
			}
		}
		if ctx.Err() != nil || !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
			return nil //nolint:nilerr // asked to stop, after a page
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// page asks for one page and returns the service's time with it.
func (p *lister) page(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	in.Bucket = &p.s.cfg.Bucket
	out, err := listObjects(ctx, p.s.client, in)
	if err != nil {
		return nil, time.Time{}, errList.New(awsclient.Explain(err), "list s3://%s/%s", p.s.cfg.Bucket, aws.ToString(in.Prefix))
	}
	mPages.WithLabelValues(p.s.deps.Name).Inc()
	p.s.answered(ctx, p.prefix)
	now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !ok {
		now = time.Now()
	}
	return out, now, nil
}

// announce publishes a notice for each object that is new, and returns when all are
// durable.
func (p *lister) announce(ctx context.Context, objects []types.Object, now time.Time) error {
	s := p.s
	var out topology.Outbox
	counts := map[string]int{}
	var marks []mark
	for i := range objects {
		o := &objects[i]
		written := aws.ToTime(o.LastModified)
		p.at.firm(aws.ToString(o.Key), written.Unix(), s.cfg.LookBack)
		if written.Unix() < p.at.Floor || now.Sub(written) < s.cfg.MinAge {
			continue
		}
		n := named{
			verdict: object, bucket: s.cfg.Bucket, key: aws.ToString(o.Key), etag: strings.Trim(aws.ToString(o.ETag), `"`),
			size: aws.ToInt64(o.Size), created: written.UnixNano(),
		}
		m := mark{id: messages.NewID([]byte(n.key), []byte(n.etag)), at: uint32(written.Unix())} // until 2106
		if p.seen.has(m) {
			continue
		}
		marks = append(marks, m)
		if n.check(); n.verdict == object && (len(s.cfg.Keys) > 0 && !patterns(s.cfg.Keys).match(n.key) || patterns(s.cfg.SkipKeys).match(n.key)) {
			n.verdict, n.why = ignored, whyFiltered
		}
		if n.verdict != object {
			counts[n.why]++ // nobody announced it: the ledger need not know
			continue
		}
		if out == nil {
			out = s.deps.NewOutbox()
		}
		origin := &messages.Origin{
			Pull: messages.NewPull("s3", s.deps.Name, n.bucket, n.key, n.etag, strconv.FormatInt(written.Unix(), 10)), Source: s.deps.Name,
			Bucket: n.bucket, Key: n.key, Etag: n.etag, Created: n.created, Received: time.Now().UnixNano(),
		}
		if err := out.Publish(ctx, topology.Message{
			Subject: topology.NoticeSubject(s.deps.Name), ID: hex.EncodeToString(origin.GetPull()),
			Data: messages.EncodeNotice(&messages.Notice{Origin: origin, Size: max(n.size, 0)}),
		}); err != nil {
			return errListBus.New(err, "announce s3://%s/%s", n.bucket, n.key)
		}
		out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{
			Announced: &messages.Announced{Origin: origin, As: messages.Announced_AS_OBJECT},
		}})
		counts[""]++
	}
	if out != nil {
		if err := out.Flush(ctx); err != nil {
			return errListBus.New(err, "announce objects of s3://%s/%s", s.cfg.Bucket, p.prefix)
		}
	}
	for _, m := range marks {
		if !p.seen.add(m) && !p.full {
			p.full = true
			s.log.WarnContext(ctx, "more objects were written in the time of look_back than are remembered; the rest is read with each listing again, and dropped as duplicates",
				"prefix", p.prefix, "remembered", p.seen.len())
		}
	}
	p.dirty = p.dirty || len(marks) > 0
	mRemembered.WithLabelValues(s.deps.Name, p.prefix).Set(float64(p.seen.len()))
	for why, n := range counts {
		if why == "" {
			mAnnounced.WithLabelValues(s.deps.Name, "object").Add(float64(n))
			continue
		}
		mAnnounced.WithLabelValues(s.deps.Name, "ignored").Add(float64(n))
		mIgnored.WithLabelValues(s.deps.Name, why).Add(float64(n))
	}
	return nil
}

// save writes the cursor down.
func (p *lister) save(ctx context.Context) error {
	if err := p.cursor.Set(ctx, p.at.write(p.seen)); err != nil {
		return errListBus.New(err, "move the cursor of s3://%s/%s", p.s.cfg.Bucket, p.prefix)
	}
	p.saved, p.dirty = time.Now(), false
	return nil
}
