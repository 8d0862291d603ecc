package fetch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
)

// firstResume is the pause before reading goes on inside an object; it doubles.
const firstResume = 200 * time.Millisecond

// object reads the stored bytes of an S3 object from the first to the last. When
// the connection breaks it asks for the rest, as long as the object is the same.
// Below the codec that is as good for compressed objects as for others.
// Source: Amazon S3 API Reference, GetObject (Range, If-Match).
type object struct {
	ctx     context.Context //nolint:containedctx // a reader; lives as long as one Handle
	api     S3
	in      s3.GetObjectInput
	region  string // "" for the client's
	source  string
	resumes int // left
	pause   time.Duration

	body io.ReadCloser
	etag string
	size int64 // as stored, -1 unknown
	read int64
	// err is what ended the reading before the object's end. Not io.EOF.
	err error
}

var regionName = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d{1,2}$`)

// open asks for the object that origin names and fills in what the answer says
// about it: version, ETag and, where the key had to be decoded, the key.
func (f *Fetch) open(ctx context.Context, src *source, n *messages.Notice, origin *messages.Origin) (*object, error) {
	api, err := src.client(ctx)
	if err != nil {
		return nil, err
	}
	o := &object{
		ctx: ctx, api: api, source: origin.GetSource(), resumes: f.cfg.Resumes, pause: f.pause, size: -1,
		in: s3.GetObjectInput{Bucket: aws.String(origin.GetBucket()), Key: aws.String(origin.GetKey())},
	}
	if region := n.GetRegion(); src.FollowRegion && regionName.MatchString(region) {
		o.region = region
	}
	versioned := origin.GetVersion() != "" && !src.unversioned.Load()
	if versioned {
		o.in.VersionId = aws.String(origin.GetVersion())
	}
	out, err := o.get()
	if versioned && errors.Is(err, awsclient.ObjectDenied) && origin.GetEtag() != "" {
		// A version needs s3:GetObjectVersion, which many policies leave out. The
		// ETag makes as sure that it is the object meant. Source: features DEV-41.
		o.in.VersionId, o.in.IfMatch = nil, aws.String(quoted(origin.GetEtag()))
		var again error
		if out, again = o.get(); again == nil {
			err = nil
			src.unversioned.Store(true)
		}
	}
	if errors.Is(err, awsclient.NoSuchKey) {
		// Whether a key came URL-encoded is not certain in every envelope.
		// Source: formats F-6.
		if key, decodeErr := url.QueryUnescape(origin.GetKey()); decodeErr == nil && key != origin.GetKey() {
			o.in.Key = aws.String(key)
			var again error
			if out, again = o.get(); again == nil {
				err = nil
				origin.Key = key
			}
		}
	}
	if err != nil {
		return nil, err
	}
	o.body = out.Body
	o.etag = aws.ToString(out.ETag)
	if out.ContentLength != nil {
		o.size = *out.ContentLength
	}
	if o.etag != "" {
		origin.Etag = strings.Trim(o.etag, `"`)
	}
	if v := aws.ToString(out.VersionId); v != "" {
		origin.Version = v
	}
	if origin.GetCreated() == 0 && out.LastModified != nil {
		origin.Created = out.LastModified.UnixNano()
	}
	return o, nil
}

func quoted(etag string) string { return `"` + strings.Trim(etag, `"`) + `"` }

func (o *object) get() (*s3.GetObjectOutput, error) {
	out, err := o.api.GetObject(o.ctx, &o.in, o.region)
	return out, awsclient.Explain(err)
}

// Read implements io.Reader. Its error is io.EOF only at the end of the object.
func (o *object) Read(p []byte) (int, error) {
	for {
		if o.err != nil {
			return 0, o.err
		}
		n, err := o.body.Read(p)
		o.read += int64(n)
		switch {
		case err == nil || n > 0 && err != io.EOF:
			return n, nil // an error that matters comes again
		case o.size >= 0 && o.read >= o.size, err == io.EOF && o.size < 0:
			return n, io.EOF
		case err == io.EOF && n > 0:
			return n, nil
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		o.err = o.resume(err)
	}
}

// resume asks for the rest of the object after cause broke the body off.
func (o *object) resume(cause error) error {
	for {
		if err := o.ctx.Err(); err != nil {
			return context.Cause(o.ctx)
		}
		if o.resumes <= 0 || o.etag == "" {
			return errBroken.New(awsclient.Explain(cause), "read %s at byte %d", o.name(), o.read)
		}
		o.resumes--
		wait := time.NewTimer(o.pause + rand.N(o.pause/2+1)) //nolint:gosec // jitter
		select {
		case <-o.ctx.Done():
			wait.Stop()
			continue
		case <-wait.C:
		}
		o.pause *= 2
		_ = o.body.Close()
		o.in.Range = aws.String(fmt.Sprintf("bytes=%d-", o.read))
		o.in.IfMatch = aws.String(o.etag)
		out, err := o.get()
		if err != nil {
			o.body = io.NopCloser(strings.NewReader(""))
			if fault.ClassOf(err) != fault.Retry {
				o.resumes = 0 // e.g. overwritten: from the beginning, by another attempt
			}
			cause = err
			continue
		}
		o.body = out.Body
		if aws.ToString(out.ETag) != o.etag || !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", o.read)) {
			o.resumes = 0
			cause = errors.New("the service does not resume where it is asked to")
			continue
		}
		resumed.WithLabelValues(o.source).Inc()
		return nil
	}
}

func (o *object) name() string { return "s3://" + *o.in.Bucket + "/" + *o.in.Key }

// close ends the connection, or gives it back when the body was read to its end.
func (o *object) close() { _ = o.body.Close() }

// position is how many stored bytes were used, when br reads from o.
func (o *object) position(br *bufio.Reader) int64 { return o.read - int64(br.Buffered()) }

// readRange reads len(b) stored bytes from at on, with a request of its own. What
// it costs counts as read. Its error is kept in o.err, as the object's end is not
// what ended it.
func (o *object) readRange(b []byte, at int64) error {
	in := o.in
	in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", at, at+int64(len(b))-1))
	if o.etag != "" {
		in.IfMatch = aws.String(o.etag)
	}
	for {
		n, err := o.fetchRange(&in, b)
		o.read += int64(n)
		if err == nil {
			return nil
		}
		if ctxErr := o.ctx.Err(); ctxErr != nil {
			o.err = context.Cause(o.ctx)
			return o.err
		}
		if o.resumes <= 0 || fault.ClassOf(err) != fault.Retry {
			o.err = errBroken.New(err, "read %s at byte %d", o.name(), at)
			return o.err
		}
		o.resumes--
		wait := time.NewTimer(o.pause + rand.N(o.pause/2+1)) //nolint:gosec // jitter
		select {
		case <-o.ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
		o.pause *= 2
		resumed.WithLabelValues(o.source).Inc()
	}
}

// fetchRange makes one attempt at a range.
func (o *object) fetchRange(in *s3.GetObjectInput, b []byte) (int, error) {
	out, err := o.api.GetObject(o.ctx, in, o.region)
	if err != nil {
		return 0, awsclient.Explain(err)
	}
	defer out.Body.Close() //nolint:errcheck // read only
	n, err := io.ReadFull(out.Body, b)
	return n, awsclient.Explain(err)
}
