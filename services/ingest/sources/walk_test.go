package sources

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// The name of a folder is what it is, also where it looks like a pattern.
func TestFoldersWithStarsInTheirNames(t *testing.T) {
	asked := 0
	below := map[string][]string{
		"logs/": {"logs/*/", "logs/a*b/", "logs/{yyyy}/"}, "logs/*/x/": {"logs/*/x/1/"}, "logs/a*b/x/": {"logs/a*b/x/*/"},
	}
	f := newFolders("bucket", layout{text: "logs/*/x/*/"}, func(_ context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, time.Time, error) {
		if asked++; asked > 10 {
			t.Fatal("it is listed without end")
		}
		out := &s3.ListObjectsV2Output{}
		for _, name := range below[aws.ToString(in.Prefix)] {
			out.CommonPrefixes = append(out.CommonPrefixes, types.CommonPrefix{Prefix: &name})
		}
		return out, time.Time{}, nil
	})
	got, err := f.expand(t.Context(), "logs/*/x/*/")
	if want := []string{"logs/*/x/1/", "logs/a*b/x/*/"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, want %q: %v", got, want, err)
	}
}
