package sources

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/services/internal/awsclient"
)

// lists asks for one page of a listing. It fills in the bucket.
type lists func(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, time.Time, error)

// folders are what * stands for in a prefix.
type folders struct {
	bucket string
	page   lists
	// head is how long the part of the prefix is that is the same for all times: what is
	// in it is listed once.
	head  int
	known map[string][]string
}

func newFolders(bucket string, l layout, page lists) *folders {
	return &folders{bucket: bucket, page: page, head: len(l.head()), known: map[string][]string{}}
}

// expand returns the folders that a prefix with * stands for, in order.
func (f *folders) expand(ctx context.Context, prefix string) ([]string, error) {
	return f.below(ctx, "", prefix)
}

// below is expand for what comes behind a folder, whose own name may have a * in it.
func (f *folders) below(ctx context.Context, folder, rest string) ([]string, error) {
	head, tail, starred := cutStar(rest)
	head = folder + head
	if !starred {
		return []string{head}, nil
	}
	names, known := f.known[head]
	if !known {
		in := &s3.ListObjectsV2Input{Prefix: &head, Delimiter: aws.String("/")}
		for {
			out, _, err := f.page(ctx, in)
			if err != nil {
				return nil, err
			}
			for _, c := range out.CommonPrefixes {
				names = append(names, aws.ToString(c.Prefix))
			}
			if len(names) > maxFolders {
				return nil, errPrefixes.New(nil, "list the folders of s3://%s/%s: more than %d", f.bucket, head, maxFolders)
			}
			if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
				break
			}
			in.ContinuationToken = out.NextContinuationToken
		}
		// Beyond the time in a prefix each folder is met once: not worth keeping.
		if len(head) <= f.head || len(f.known) < maxFolders {
			f.known[head] = names
		}
	}
	var all []string
	for _, name := range names {
		more, err := f.below(ctx, name, tail)
		if err != nil {
			return nil, err
		}
		if all = append(all, more...); len(all) > maxFolders {
			return nil, errPrefixes.New(nil, "list the folders of s3://%s/%s: more than %d", f.bucket, folder+rest, maxFolders)
		}
	}
	return all, nil
}

// listObjects asks for one page with keys encoded: they may have characters that XML has not,
// and one of those would make all of the page unreadable.
func listObjects(ctx context.Context, client *s3.Client, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	in.EncodingType = types.EncodingTypeUrl
	out, err := client.ListObjectsV2(ctx, in)
	if err != nil || out.EncodingType != types.EncodingTypeUrl { // a service that does not know it
		return out, err
	}
	decode := func(s *string) *string {
		plain, bad := url.QueryUnescape(aws.ToString(s))
		err = errors.Join(err, bad)
		return &plain
	}
	for i := range out.Contents {
		out.Contents[i].Key = decode(out.Contents[i].Key)
	}
	for i := range out.CommonPrefixes {
		out.CommonPrefixes[i].Prefix = decode(out.CommonPrefixes[i].Prefix)
	}
	return out, err
}

// takes tells whether a key is wanted by patterns.
func takes(keys, skipKeys []string, key string) bool {
	return (len(keys) == 0 || patterns(keys).match(key)) && !patterns(skipKeys).match(key)
}

// Place is where a walk over a bucket is, to go on from there.
type Place struct {
	// Folder is the time of the folder, in Unix seconds, where the prefix has one.
	Folder int64 `json:"folder,omitempty"`
	// After is the last key that was handed over.
	After string `json:"after,omitempty"`
}

// Walk lists objects of a bucket, page by page.
type Walk struct {
	Client *s3.Client
	Bucket string
	// Prefix may have placeholders, as the prefixes of the s3 source: then only the
	// folders of the span are listed.
	Prefix string
	// From and To bound the time of writing, To not included; zero does not.
	From, To time.Time
	// Folders has them choose folders only: all objects of those are handed over.
	Folders bool
}

// CheckPrefix tells what is wrong with a prefix.
func CheckPrefix(prefix string) error {
	_, err := parseLayout(prefix)
	return err
}

// Expand returns the folders that a prefix with * stands for, in order.
func (w *Walk) Expand(ctx context.Context, prefix string) ([]string, error) {
	return newFolders(w.Bucket, layout{text: prefix}, w.page).expand(ctx, prefix)
}

// Run calls f with the objects of each page that were written in the span, perhaps none,
// and the place behind the page, from a place on. all is how many the page had. The
// order is the same each time. An error of f ends it.
func (w *Walk) Run(ctx context.Context, at Place, f func(page []types.Object, all int, next Place) error) error {
	l, err := parseLayout(w.Prefix)
	if err != nil {
		return errList.New(err, "list s3://%s/%s", w.Bucket, w.Prefix)
	}
	from, to := w.From, w.To
	if to.IsZero() || to.After(time.Now()) {
		to = time.Now()
	}
	if l.dated() && from.IsZero() {
		from = time.Date(2006, 3, 14, 0, 0, 0, 0, time.UTC) // when S3 was begun
		if l.unit == 'H' || l.unit == 'd' {
			return errSpanOpen.New(nil, "list s3://%s/%s", w.Bucket, w.Prefix)
		}
	}
	folders := newFolders(w.Bucket, l, w.page)
	for t := range l.times(from, to) {
		if l.dated() && t.Unix() < at.Folder {
			continue // done
		}
		if l.dated() && t.Unix() > at.Folder {
			at = Place{Folder: t.Unix()}
		}
		names, err := folders.expand(ctx, l.render(t))
		if err != nil {
			return err
		}
		for _, folder := range names {
			if at.After > folder && !strings.HasPrefix(at.After, folder) {
				continue // done
			}
			if err := w.folder(ctx, folder, &at, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// folder lists what is below a prefix, from a place on.
func (w *Walk) folder(ctx context.Context, folder string, at *Place, f func([]types.Object, int, Place) error) error {
	in := &s3.ListObjectsV2Input{Prefix: &folder}
	if after := at.After; after != "" && strings.HasPrefix(after, folder) {
		in.StartAfter = &after
	}
	for {
		out, _, err := w.page(ctx, in)
		if err != nil {
			return err
		}
		all := len(out.Contents)
		if all > 0 {
			at.After = aws.ToString(out.Contents[all-1].Key)
		}
		page := out.Contents[:0]
		for _, o := range out.Contents {
			if t := aws.ToTime(o.LastModified); w.Folders || !t.Before(w.From) && (w.To.IsZero() || t.Before(w.To)) {
				page = append(page, o)
			}
		}
		if err := f(page, all, *at); err != nil {
			return err
		}
		if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
			return nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// page asks for one page.
func (w *Walk) page(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	in.Bucket = &w.Bucket
	out, err := listObjects(ctx, w.Client, in)
	if err != nil {
		return nil, time.Time{}, errList.New(awsclient.Explain(err), "list s3://%s/%s", w.Bucket, aws.ToString(in.Prefix))
	}
	return out, time.Now(), nil
}
