package sinks

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/probe"
)

// Probe implements [probe.Prober]: it begins an upload with all that is asked for and
// aborts it, which leaves nothing behind.
func (c S3Config) Probe(ctx context.Context) []probe.Finding {
	all, known := probe.Identity(ctx, c.AWS, "aws")
	if !known {
		return all
	}
	client, err := awsclient.S3(ctx, c.AWS)
	if err != nil {
		return append(all, probe.Error("client", c.Bucket, err))
	}
	prefix := c.Prefix
	if prefix != "" {
		prefix += "/"
	}
	return append(all, tryUpload(ctx, client, c.Bucket, prefix, c.headers())...)
}

// tryUpload begins an upload and aborts it.
func tryUpload(ctx context.Context, client *s3.Client, bucket, prefix string, h s3Headers) []probe.Finding {
	objects, key := "arn:aws:s3:::"+bucket+"/*", prefix+"penstock-doctor"
	out, err := client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &bucket, Key: &key, ContentType: h.media, ServerSideEncryption: h.sse, SSEKMSKeyId: h.key, BucketKeyEnabled: h.less,
		StorageClass: h.class, ACL: h.acl, ChecksumAlgorithm: h.sum,
	})
	f := probe.Call(callPutObject, objects, err)
	if err != nil {
		return []probe.Finding{f}
	}
	f.Detail = "began an upload"
	all := []probe.Finding{f}
	if h.key != nil {
		all = append(all, probe.Good(callDataKey, *h.key, ""))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err = client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: out.UploadId})
	f = probe.Call(callAbort, objects, err)
	if err != nil {
		f.Level = probe.Warn
		f.Fix = "allow it, so that parts of objects that are given up are removed; the upload that was tried, without parts, stays until a lifecycle rule removes it"
	}
	return append(all, f)
}

// Probe implements [probe.Prober]: it sends a message with a character that SQS never
// takes, so that the queue refuses it after it has looked who sends it.
func (c SQSConfig) Probe(ctx context.Context) []probe.Finding {
	at := c.AWS.ForQueue(c.QueueURL)
	all, known := probe.Identity(ctx, at, "aws")
	if !known {
		return all
	}
	client, err := awsclient.SQS(ctx, at)
	if err != nil {
		return append(all, probe.Error("client", c.QueueURL, err))
	}
	found, gone := c.tryQueue(ctx, client, awsclient.QueueARN(c.QueueURL, at.Region))
	if all = append(all, found...); gone || c.Oversize != OversizeS3 {
		return all
	}
	bucket := c.overflowAt()
	if c.OverflowAWS != (awsclient.Config{}) {
		more, known := probe.Identity(ctx, bucket, "overflow_aws")
		if all = append(all, more...); !known {
			return all
		}
	}
	store, err := awsclient.S3(ctx, bucket)
	if err != nil {
		return append(all, probe.Error("client", c.OverflowBucket, err))
	}
	media := "application/json"
	return append(all, tryUpload(ctx, store, c.OverflowBucket, c.OverflowPrefix+"/", s3Headers{media: &media})...)
}

// tryQueue looks at the queue and tries to send. Gone: there is none, or no way to it.
func (c SQSConfig) tryQueue(ctx context.Context, client *sqs.Client, arn string) (all []probe.Finding, gone bool) {
	out, err := client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &c.QueueURL, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll},
	})
	f := probe.Call(callAttributes, arn, err)
	if err != nil && f.Policy == nil {
		return []probe.Finding{f}, true
	}
	if err != nil {
		f.Level, f.Fix = probe.Warn, "sending works without it; the queue itself cannot be looked at"
	} else {
		if named := out.Attributes["QueueArn"]; named != "" {
			arn, f.Resource = named, named
		}
		f.Detail = out.Attributes["ApproximateNumberOfMessages"] + " messages wait"
	}
	all = append(all, f)
	if err == nil {
		if most, bad := strconv.Atoi(out.Attributes["MaximumMessageSize"]); bad == nil && most < int(c.MaxMessageBytes) {
			all = append(all, probe.Doubt("message size", arn, fmt.Sprintf("the queue takes %d bytes, and max_message_bytes is %d", most, c.MaxMessageBytes),
				"lower max_message_bytes, or raise the maximum message size of the queue"))
		}
	}
	in := &sqs.SendMessageInput{QueueUrl: &c.QueueURL, MessageBody: aws.String("\uFFFF")}
	if c.fifo() {
		in.MessageGroupId, in.MessageDeduplicationId = aws.String("penstock-doctor"), aws.String("penstock-doctor")
	}
	if _, err = client.SendMessage(ctx, in); err != nil && probe.Allowed(err, awsclient.Refused) {
		return append(all, probe.Good(callSend, arn, "allowed, as far as can be seen without sending anything")), false
	}
	return append(all, probe.Call(callSend, arn, err)), false
}
