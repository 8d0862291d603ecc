package sources

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/probe"
)

// bucketProbe tries what is done with one bucket.
type bucketProbe struct {
	client *s3.Client
	bucket string
	// prefixes to list, at least one.
	prefixes []string
	// key of an object that is known to be there, perhaps empty.
	key string
	// lists: without listing nothing works. Otherwise it only makes clear whether a
	// key is missing.
	lists bool
}

// noSuchKey is one that nobody has, below a prefix: elsewhere nothing may be allowed.
const noSuchKey = "penstock-doctor/there-is-no-such-key"

// Probe implements [probe.Prober].
func (c S3Config) Probe(ctx context.Context) []probe.Finding {
	all, known := probe.Identity(ctx, c.AWS, "aws")
	if !known {
		return all
	}
	client, err := awsclient.S3(ctx, c.AWS)
	if err != nil {
		return append(all, probe.Error("client", c.Bucket, err))
	}
	b := bucketProbe{client: client, bucket: c.Bucket, lists: true}
	for _, prefix := range c.Prefixes {
		l, err := parseLayout(prefix)
		if err != nil {
			return append(all, probe.Error("prefix", prefix, err))
		}
		b.prefixes = append(b.prefixes, l.head())
	}
	if len(b.prefixes) == 0 {
		b.prefixes = []string{""}
	}
	return append(all, b.findings(ctx)...)
}

func (b *bucketProbe) arn() string { return "arn:aws:s3:::" + b.bucket }

func (b *bucketProbe) findings(ctx context.Context) []probe.Finding {
	var all []probe.Finding
	listed := false
	for _, prefix := range b.prefixes {
		out, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: &prefix, MaxKeys: aws.Int32(50)})
		f := probe.Call(callList, b.arn(), err)
		switch {
		case err != nil && !b.lists && f.Policy != nil:
			f.Level, f.Fix = probe.Warn, "reading works without it, but an object that is not there yet then looks like one that may not be read, and is tried for longer"
		case err != nil && f.Policy == nil:
			return append(all, f) // no such bucket, another region, no network: said once
		case err == nil && len(out.Contents) == 0 && b.lists:
			f = probe.Doubt(callList, b.arn(), "nothing is below the prefix \""+prefix+"\"", "compare the prefix with the keys in the bucket")
		case err == nil:
			listed = true
			if prefix != "" {
				f.Detail = "below the prefix \"" + prefix + "\""
			}
			for _, o := range out.Contents {
				if key := aws.ToString(o.Key); b.key == "" && aws.ToInt64(o.Size) > 0 && !strings.HasSuffix(key, "/") {
					b.key = key
				}
			}
		}
		all = append(all, f)
		if err != nil {
			break
		}
	}
	if b.key == "" {
		return append(all, b.tryNothing(ctx, listed))
	}
	return append(all, b.try(ctx)...)
}

// try reads the first byte of an object.
func (b *bucketProbe) try(ctx context.Context) []probe.Finding {
	objects := b.arn() + "/*"
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.bucket, Key: &b.key, Range: aws.String("bytes=0-0")})
	f := probe.Call(callObject, objects, err)
	if err != nil {
		if errors.Is(awsclient.Explain(err), awsclient.ObjectKeyDenied) {
			f.Detail += "; the object is " + b.key
			return []probe.Finding{probe.Good(callObject, objects, ""), f}
		}
		return []probe.Finding{f}
	}
	_, _ = io.Copy(io.Discard, out.Body)
	_ = out.Body.Close()
	f.Detail = b.key
	all := []probe.Finding{f}
	if key := aws.ToString(out.SSEKMSKeyId); key != "" {
		all = append(all, probe.Good(callDecrypt, key, "the object is encrypted with this key"))
	}
	version := aws.ToString(out.VersionId)
	if version == "" || version == "null" || b.lists {
		return all
	}
	out, err = b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.bucket, Key: &b.key, VersionId: &version, Range: aws.String("bytes=0-0")})
	f = probe.Call(callVersion, objects, err)
	if err == nil {
		_ = out.Body.Close()
	} else {
		f.Level, f.Fix = probe.Warn, "reading works without it: an object that was written again is then read in its newer version only"
	}
	return append(all, f)
}

// tryNothing asks for an object that is not there, for want of one that is.
func (b *bucketProbe) tryNothing(ctx context.Context, listed bool) probe.Finding {
	objects := b.arn() + "/*"
	_, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.bucket, Key: aws.String(b.prefixes[0] + noSuchKey)})
	lacks, _ := awsclient.Lacks(awsclient.Explain(err))
	switch {
	case probe.Allowed(err, awsclient.NoSuchKey):
		return probe.Doubt(callObject, objects, "allowed, as far as can be seen without an object", "none needed; with an encrypted bucket look again when there is an object")
	case lacks == callList && !listed: // the service says that only this is missing
		return probe.Doubt(callObject, objects, "allowed, as far as can be seen without an object and without "+callList, "allow "+callList+", or look again when a notification is waiting")
	}
	return probe.Call(callObject, objects, err)
}
