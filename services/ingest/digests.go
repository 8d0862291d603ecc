package ingest

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/digest"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
)

var (
	errGet = fault.Define("reconcile.get_refused", fault.Retry,
		"grant s3:GetObject on the digest files and log files, and check the network")
	errKeys = fault.Define("reconcile.keys_refused", fault.Retry,
		"grant cloudtrail:ListPublicKeys, or give the keys with --public-keys: aws cloudtrail list-public-keys --start-time … > keys.json")
	errNoDigests = fault.Define("reconcile.no_digest_files", fault.Reject,
		"name the folder that AWSLogs is in: s3://bucket/prefix; have the trail write digest files (log file validation), and look at the time asked for")
)

const (
	// chainSlack is how late digest files come: one for each hour, some time after it.
	chainSlack = 2 * time.Hour
	// logReaders is how many log files are read at once.
	logReaders = 8
	// readWithin bounds the reading of one file.
	readWithin = 15 * time.Minute
)

// chainLink is the last digest file of a chain that was read.
type chainLink struct {
	digest.Link
	// Seen: one of the time asked for was among them.
	Seen bool `json:"seen,omitempty"`
}

// proving is a reconciliation by digest files. Chains are read one after the other, from
// the oldest file on, beginning with the one before the time asked for.
type proving struct {
	*comparing
	client *s3.Client
	keys   map[string]*rsa.PublicKey
	asked  map[string]bool // regions whose keys were asked for
}

// proof returns what is proven by now.
func (p *proving) proof() *jobs.Digests {
	if p.at.Sums.Digests == nil {
		p.at.Sums.Digests = &jobs.Digests{Bad: map[string]uint64{}}
	}
	if p.at.Sums.Digests.Bad == nil {
		p.at.Sums.Digests.Bad = map[string]uint64{}
	}
	return p.at.Sums.Digests
}

// bad notes what digest files prove to be wrong.
func (p *proving) bad(ctx context.Context, f jobs.Finding) error {
	p.proof().Bad[f.What]++
	if f.Bucket == "" {
		f.Bucket = p.spec.Bucket
	}
	return p.find(ctx, f)
}

func (p *proving) run(ctx context.Context) error {
	p.keys, p.asked = map[string]*rsa.PublicKey{}, map[string]bool{}
	for fingerprint, der := range p.spec.PublicKeys {
		key, err := digest.PublicKey(der)
		if err != nil {
			return err
		}
		p.keys[fingerprint] = key
	}
	folders, err := p.folders(ctx)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if folder < p.at.Chains {
			continue // done
		}
		if folder > p.at.Chains {
			p.at.Chains, p.at.Place, p.at.Links = folder, sources.Place{}, nil
		}
		if err := p.folder(ctx, folder); err != nil {
			return err
		}
		if err := p.ends(ctx); err != nil {
			return err
		}
		p.at.Place, p.at.Links = sources.Place{Folder: 1<<62 - 1}, nil // behind all of it
		if err := p.save(ctx); err != nil {
			return err
		}
	}
	if d := p.proof(); d.Files == 0 && len(d.Bad) == 0 {
		return errNoDigests.New(nil, "look for digest files below s3://%s/%s", p.spec.Bucket, p.spec.Prefix)
	}
	return nil
}

// folders are those of the regions of all accounts.
func (p *proving) folders(ctx context.Context) ([]string, error) {
	w := &sources.Walk{Client: p.client, Bucket: p.spec.Bucket}
	root, _, deep := strings.Cut(p.spec.Prefix, "AWSLogs/")
	if i := strings.Index(p.spec.Prefix, "/CloudTrail-Digest/"); deep && i > 0 {
		// A part of the chains only: one account, or one region of it.
		if region, _, ok := strings.Cut(p.spec.Prefix[i+len("/CloudTrail-Digest/"):], "/"); ok && region != "" && region != "*" {
			return w.Expand(ctx, p.spec.Prefix[:i]+"/CloudTrail-Digest/"+region+"/")
		}
		return w.Expand(ctx, p.spec.Prefix[:i]+"/CloudTrail-Digest/*/")
	}
	if !deep && root != "" && !strings.HasSuffix(root, "/") {
		root += "/"
	}
	all, err := w.Expand(ctx, root+"AWSLogs/*/CloudTrail-Digest/*/")
	if err != nil {
		return nil, err
	}
	organization, err := w.Expand(ctx, root+"AWSLogs/*/*/CloudTrail-Digest/*/")
	if err != nil {
		return nil, err
	}
	// None of CloudTrail's is named like a pattern, and as one it would stand for others.
	all = slices.DeleteFunc(append(all, organization...), func(folder string) bool { return strings.ContainsAny(folder, "*{}") })
	slices.Sort(all)
	return slices.Compact(all), nil
}

// folder reads the digest files of a region of an account.
func (p *proving) folder(ctx context.Context, folder string) error {
	from := p.spec.From
	if from.IsZero() {
		from = time.Date(2015, 5, 1, 0, 0, 0, 0, time.UTC) // there were none before
		years, err := (&sources.Walk{Client: p.client, Bucket: p.spec.Bucket}).Expand(ctx, folder+"*/*/*/")
		if err != nil || len(years) == 0 {
			return err
		}
		if first, err := time.Parse("2006/01/02/", strings.TrimPrefix(years[0], folder)); err == nil {
			from = first
		}
	}
	walk := &sources.Walk{
		Client: p.client, Bucket: p.spec.Bucket, Prefix: folder + "{yyyy}/{MM}/{dd}/",
		From: from.Add(-chainSlack), To: p.spec.To.Add(chainSlack), Folders: true,
	}
	return walk.Run(ctx, p.at.Place, func(page []types.Object, _ int, next sources.Place) error {
		for i := range page {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			key := aws.ToString(page[i].Key)
			undo := p.mark()
			if err := p.file(ctx, key); err != nil {
				undo()
				return err
			}
			p.at.Place = sources.Place{Folder: next.Folder, After: key}
			if err := p.tell(ctx); err != nil {
				return err
			}
		}
		p.at.Place = next
		return nil
	})
}

// file checks one digest file, and what it names.
func (p *proving) file(ctx context.Context, key string) error {
	name, ok := digest.NameOf(key)
	if !ok || name.End.Before(p.spec.From.Add(-chainSlack)) || name.End.After(p.spec.To.Add(chainSlack/2)) {
		return nil
	}
	if p.at.Links == nil {
		p.at.Links = map[string]*chainLink{}
	}
	before := p.at.Links[name.Chain]
	// That before the time asked for is read for the sake of the chain alone.
	asked := name.End.After(p.spec.From)
	link := &chainLink{Link: digest.Link{Key: key, End: name.End, Bad: true}, Seen: asked || before != nil && before.Seen}
	p.at.Links[name.Chain] = link
	if link.Seen && (before == nil || !before.Seen) {
		p.proof().Chains++
	}
	if asked {
		p.proof().Files++
	}
	f, err := p.read(ctx, key)
	if err != nil && fault.ClassOf(err) == fault.Retry {
		return err
	}
	said := func(what, detail string) error {
		if !asked {
			return nil
		}
		return p.bad(ctx, jobs.Finding{What: what, Key: key, Written: name.End, Detail: detail})
	}
	if err != nil {
		return said(digest.Altered, err.Error()+"; its log files are not proven")
	}
	link.Hash, link.Signature = f.Hash, short(f.Signature)
	public, err := p.key(ctx, name, f.Fingerprint)
	if err != nil {
		return err
	}
	if public == nil {
		return said(digest.KeyUnknown, "no public key has the fingerprint "+f.Fingerprint+"; its log files are not proven")
	}
	if err := f.Verify(p.spec.Bucket, key, public); err != nil {
		return said(digest.Altered, err.Error()+"; its log files are not proven")
	}
	link.Bad = false
	if !asked {
		return nil
	}
	if err := p.follows(ctx, name, f, before); err != nil {
		return err
	}
	return p.logs(ctx, f)
}

// short stands for a signature.
func short(signature string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(signature)))
	return hex.EncodeToString(sum[:16])
}

// follows checks what a digest file, which was found to be right, says of the one before.
func (p *proving) follows(ctx context.Context, name digest.Name, f *digest.File, before *chainLink) error {
	gap := func(detail string) error {
		if name.Backfill() {
			return nil // such files come when there is need for one
		}
		return p.bad(ctx, jobs.Finding{What: digest.Gap, Key: f.Key, Written: f.StartTime, Detail: detail})
	}
	switch {
	case f.First() && before == nil && (p.spec.From.IsZero() || !f.StartTime.After(p.spec.From)):
		return nil
	case f.First() && before == nil:
		return gap("the chain begins at " + f.Start + ": nothing before is proven")
	case f.First():
		return gap("a new chain begins at " + f.Start + ": nothing since " + before.End.Format(time.RFC3339) + " is proven")
	case before == nil || *f.PreviousKey != before.Key:
		there, err := p.exists(ctx, f)
		if err != nil || there {
			return err // before the time asked for
		}
		return p.bad(ctx, jobs.Finding{
			What: digest.Missing, Key: *f.PreviousKey, Written: f.StartTime, Detail: "it is named, with its signature, by " + f.Key + "; its log files are not proven",
		})
	}
	why := f.Follows(&digest.Link{Key: before.Key, Hash: before.Hash, Signature: f.SignatureBefore()})
	if why == "" && before.Signature != short(f.SignatureBefore()) {
		why = "the one before it has another signature than this one says"
	}
	if why == "" || before.Bad {
		return nil // or said by then
	}
	return p.bad(ctx, jobs.Finding{What: digest.Altered, Key: before.Key, Written: before.End, Detail: why + ": " + f.Key})
}

// exists tells whether the digest file is there that f names as the one before.
func (p *proving) exists(ctx context.Context, f *digest.File) (bool, error) {
	bucket := p.spec.Bucket
	if f.PreviousBucket != nil && *f.PreviousBucket != "" {
		bucket = *f.PreviousBucket
	}
	if !p.reader.Objects.Allows(bucket) {
		return true, nil // the trail wrote elsewhere before
	}
	body, err := p.get(ctx, bucket, *f.PreviousKey)
	if errors.Is(err, awsclient.NoSuchKey) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_ = body.Body.Close()
	return true, nil
}

// ends looks whether the chains reach to the end of the time asked for.
func (p *proving) ends(ctx context.Context) error {
	until := p.spec.To
	if now := time.Now(); until.After(now.Add(-chainSlack)) {
		until = now.Add(-chainSlack)
	}
	for chain, link := range p.at.Links {
		// Of one that was read for the sake of the chain alone, all that was asked for is missing.
		if strings.HasSuffix(chain, "_backfill") || !link.End.Before(until) || !link.Seen && !until.After(p.spec.From) {
			continue
		}
		if !link.Seen {
			p.proof().Chains++
		}
		if err := p.bad(ctx, jobs.Finding{
			What: digest.Gap, Key: link.Key, Written: link.End,
			Detail: "there is no digest file after it: nothing from " + link.End.Format(time.RFC3339) + " to " + until.UTC().Format(time.RFC3339) + " is proven",
		}); err != nil {
			return err
		}
	}
	return nil
}

// get gets an object; the caller closes its body.
func (p *proving) get(ctx context.Context, bucket, key string) (*s3.GetObjectOutput, error) {
	out, err := p.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		err = awsclient.Explain(err)
		if errors.Is(err, awsclient.NoSuchKey) {
			return nil, err
		}
		return nil, errGet.New(err, "get s3://%s/%s", bucket, key)
	}
	return out, nil
}

// read reads a digest file.
func (p *proving) read(ctx context.Context, key string) (*digest.File, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	out, err := p.get(ctx, p.spec.Bucket, key)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Body.Close() }()
	body := &reading{r: out.Body}
	f, err := digest.Read(body, out.Metadata["signature"])
	if body.err != nil {
		return nil, errGet.New(body.err, "read s3://%s/%s", p.spec.Bucket, key)
	}
	return f, err
}

// reading tells an error of the connection from bytes that are wrong.
type reading struct {
	r   io.Reader
	err error
}

func (r *reading) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// key returns the public key with a fingerprint, nil when there is none: of those that
// were given, else of the region whose events the file is about, or of the trail's.
func (p *proving) key(ctx context.Context, name digest.Name, fingerprint string) (*rsa.PublicKey, error) {
	for _, region := range []string{name.Region, name.Home} {
		if k := p.keys[fingerprint]; k != nil || len(p.spec.PublicKeys) > 0 {
			return k, nil
		}
		if p.asked[region] {
			continue
		}
		if err := p.list(ctx, region); err != nil {
			return nil, err
		}
		p.asked[region] = true
	}
	return p.keys[fingerprint], nil
}

// list asks CloudTrail for the keys of a region.
func (p *proving) list(ctx context.Context, region string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg, err := awsclient.Load(ctx, p.reader.Objects.ObjectAWS())
	if err != nil {
		return errKeys.New(err, "ask for the public keys of CloudTrail in %s", region)
	}
	client := cloudtrail.NewFromConfig(cfg, func(o *cloudtrail.Options) { o.Region = region })
	in := &cloudtrail.ListPublicKeysInput{EndTime: aws.Time(p.spec.To.Add(chainSlack))}
	if !p.spec.From.IsZero() {
		in.StartTime = aws.Time(p.spec.From.Add(-24 * time.Hour))
	} else {
		in.StartTime = aws.Time(time.Date(2015, 5, 1, 0, 0, 0, 0, time.UTC))
	}
	for {
		out, err := client.ListPublicKeys(ctx, in)
		if err != nil {
			return errKeys.New(awsclient.Explain(err), "ask for the public keys of CloudTrail in %s", region)
		}
		for _, k := range out.PublicKeyList {
			key, err := digest.PublicKey(k.Value)
			if err != nil {
				return err
			}
			p.keys[aws.ToString(k.Fingerprint)] = key
		}
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			return nil
		}
	}
}

// logs checks the log files that a digest file names, and compares them with the ledger.
func (p *proving) logs(ctx context.Context, f *digest.File) error {
	type result struct {
		found
		what, detail string
		err          error
	}
	ctx, cancel := context.WithTimeout(ctx, readWithin*time.Duration(1+len(f.Logs)/logReaders))
	defer cancel()
	for logs := f.Logs; len(logs) > 0; logs = logs[min(len(logs), logBatch):] {
		batch := logs[:min(len(logs), logBatch)]
		results := make([]result, len(batch))
		slots := make(chan struct{}, logReaders)
		var wg sync.WaitGroup
		for i := range batch {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				r := &results[i]
				r.found, r.what, r.detail, r.err = p.log(ctx, &batch[i])
			})
		}
		wg.Wait()
		proof := p.proof()
		byBucket := map[string][]found{}
		for i := range results {
			r, l := &results[i], &batch[i]
			if r.err != nil {
				return r.err
			}
			proof.LogFiles++
			if r.what == "" {
				proof.Verified++
			} else if err := p.bad(ctx, jobs.Finding{What: r.what, Bucket: l.Bucket, Key: l.Key, ETag: r.etag, Size: r.size, Written: r.written, Detail: r.detail}); err != nil {
				return err
			}
			if !p.reader.Objects.Allows(l.Bucket) || !p.reader.Objects.Takes(l.Key) {
				p.at.Sums.NotWanted++
				continue
			}
			if r.what != digest.LogMissing {
				byBucket[l.Bucket] = append(byBucket[l.Bucket], r.found)
			}
		}
		for bucket, objects := range byBucket {
			if p.at.Sums.NoLedger {
				continue
			}
			err := p.compare(ctx, bucket, objects)
			if errors.Is(err, known.ErrNoLedger) && !p.spec.Requeue {
				p.at.Sums.NoLedger = true // what digest files prove, they prove without it
				continue
			}
			if err != nil {
				return err
			}
		}
		p.r.Report(p.progress())
	}
	return nil
}

// logBatch is how many log files are in hand at once.
const logBatch = 256

// log checks one log file.
func (p *proving) log(ctx context.Context, l *digest.Log) (o found, what, detail string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	o.key = l.Key
	if !p.reader.Objects.Allows(l.Bucket) {
		return o, digest.LogUnread, "it is in a bucket that the source may not read", nil
	}
	out, err := p.get(ctx, l.Bucket, l.Key)
	if errors.Is(err, awsclient.NoSuchKey) {
		return o, digest.LogMissing, "it was deleted after CloudTrail had written it", nil
	}
	if err != nil {
		return o, "", "", err
	}
	defer func() { _ = out.Body.Close() }()
	o.etag, o.size, o.written = strings.Trim(aws.ToString(out.ETag), `"`), aws.ToInt64(out.ContentLength), aws.ToTime(out.LastModified)
	if l.Algorithm != "" && l.Algorithm != "SHA-256" {
		return o, digest.LogAltered, "its hash is of a kind that is not known", nil
	}
	body := &reading{r: out.Body}
	hash, err := digest.HashLog(body)
	switch {
	case body.err != nil:
		return o, "", "", errGet.New(body.err, "read s3://%s/%s", l.Bucket, l.Key)
	case err != nil:
		return o, digest.LogAltered, fmt.Sprintf("it is no longer what CloudTrail has written: %v", err), nil
	case !strings.EqualFold(hash, l.Hash):
		return o, digest.LogAltered, "its hash is not the one that was signed", nil
	}
	return o, "", "", nil
}
