package sources

import (
	"context"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	metrics "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/guardduty"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/probe"
)

// probeRegions asks for the identity and calls try for each region.
func probeRegions(ctx context.Context, c awsclient.Config, named []string, try func(sdk aws.Config, region string) []probe.Finding) []probe.Finding {
	all, known := probe.Identity(ctx, c, "aws")
	if !known {
		return all
	}
	sdk, err := awsclient.Load(ctx, c)
	if err != nil {
		return append(all, probe.Error("client", "", err))
	}
	regions, err := regionsOf(sdk, named)
	if err != nil {
		return append(all, probe.Error("regions", "", err))
	}
	for _, region := range regions {
		in := sdk.Copy()
		in.Region = region
		for _, f := range try(in, region) {
			if f.Detail = strings.TrimSpace(f.Detail); f.Detail != "" {
				f.Detail = region + ": " + f.Detail
			} else {
				f.Detail = region
			}
			all = append(all, f)
		}
	}
	return all
}

// globalRegion is where events of services without a region are recorded.
// Source: features DEV-7.
const globalRegion = "us-east-1"

// Probe implements [probe.Prober].
func (c CloudTrailConfig) Probe(ctx context.Context) []probe.Finding {
	var regions []string
	all := probeRegions(ctx, c.AWS, c.Regions, func(sdk aws.Config, region string) []probe.Finding {
		regions = append(regions, region)
		_, err := cloudtrail.NewFromConfig(sdk).LookupEvents(ctx, &cloudtrail.LookupEventsInput{
			StartTime: aws.Time(time.Now().Add(-time.Hour)), EndTime: aws.Time(time.Now()), MaxResults: aws.Int32(1),
		})
		return []probe.Finding{probe.Call(trailCall, "*", err)}
	})
	if len(regions) > 0 && !slices.Contains(regions, globalRegion) && !slices.ContainsFunc(regions, otherPartition) {
		all = append(all, probe.Doubt("regions", strings.Join(regions, ", "), "events of services without a region, such as IAM, STS and CloudFront, are recorded in "+globalRegion,
			"add "+globalRegion+" to regions, unless another source reads it"))
	}
	return all
}

// otherPartition tells whether a region is not one of the commercial ones.
func otherPartition(region string) bool {
	return strings.HasPrefix(region, "cn-") || strings.HasPrefix(region, "us-gov-") || strings.HasPrefix(region, "us-iso") || strings.HasPrefix(region, "eusc-")
}

// Probe implements [probe.Prober].
func (c CloudWatchLogsConfig) Probe(ctx context.Context) []probe.Finding {
	return probeRegions(ctx, c.AWS, c.Regions, func(sdk aws.Config, region string) []probe.Finding {
		client := cloudwatchlogs.NewFromConfig(sdk)
		const groups = "arn:aws:logs:*:*:log-group:*"
		in := &cloudwatchlogs.DescribeLogGroupsInput{}
		name := ""
		for _, pattern := range c.LogGroups {
			if bare, _, found := strings.Cut(strings.ReplaceAll(pattern, "?", "*"), "*"); pattern != allGroups && bare != "" {
				if in.LogGroupNamePrefix = &bare; !found {
					name = pattern
				}
				break
			}
		}
		out, err := client.DescribeLogGroups(ctx, in)
		f := probe.Call(callLogGroups.api, groups, err)
		if err == nil {
			for _, g := range out.LogGroups {
				if group := aws.ToString(g.LogGroupName); c.wants(group) {
					name = group
					break
				}
			}
			if name == "" {
				return []probe.Finding{probe.Doubt(callLogGroups.api, groups, "no log group matches log_groups", "compare log_groups with the names in this region")}
			}
		}
		all := []probe.Finding{f}
		if name == "" {
			return all
		}
		arn := "arn:aws:logs:*:*:log-group:" + name + ":*"
		_, err = client.DescribeLogStreams(ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: &name, Limit: aws.Int32(1)})
		all = append(all, probe.Call(callLogStreams.api, arn, err))
		now := time.Now().UnixMilli()
		_, err = client.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: &name, Limit: aws.Int32(1), StartTime: aws.Int64(now - 60_000), EndTime: &now})
		return append(all, probe.Call(callLogEvents.api, arn, err))
	})
}

// wants tells whether a log group is to be read.
func (c CloudWatchLogsConfig) wants(group string) bool {
	return (slices.Contains(c.LogGroups, allGroups) || patterns(c.LogGroups).match(group)) && !patterns(c.SkipLogGroups).match(group)
}

// Probe implements [probe.Prober].
func (c CloudWatchMetricsConfig) Probe(ctx context.Context) []probe.Finding {
	return probeRegions(ctx, c.AWS, c.Regions, func(sdk aws.Config, region string) []probe.Finding {
		client := cloudwatch.NewFromConfig(sdk)
		var all []probe.Finding
		for _, namespace := range c.MetricNamespaces {
			in := &cloudwatch.ListMetricsInput{}
			if namespace != "*" {
				in.Namespace = &namespace
			}
			out, err := client.ListMetrics(ctx, in)
			f := probe.Call(callListMetrics.api, "*", err)
			if err == nil && len(out.Metrics) == 0 {
				f = probe.Doubt(callListMetrics.api, "*", "the namespace "+namespace+" has no metrics", "compare metric_namespaces with those of this region")
			}
			all = append(all, f)
			if err != nil {
				break
			}
		}
		now := time.Now().Truncate(time.Minute)
		_, err := client.GetMetricData(ctx, &cloudwatch.GetMetricDataInput{
			StartTime: aws.Time(now.Add(-5 * time.Minute)), EndTime: &now,
			MetricDataQueries: []metrics.MetricDataQuery{{Id: aws.String("m"), MetricStat: &metrics.MetricStat{
				Metric: &metrics.Metric{Namespace: aws.String("AWS/Usage"), MetricName: aws.String("CallCount")}, Period: aws.Int32(60), Stat: aws.String("Sum"),
			}}},
		})
		return append(all, probe.Call(callMetricData.api, "*", err))
	})
}

// Probe implements [probe.Prober].
func (c GuardDutyConfig) Probe(ctx context.Context) []probe.Finding {
	return probeRegions(ctx, c.AWS, c.Regions, func(sdk aws.Config, region string) []probe.Finding {
		client := guardduty.NewFromConfig(sdk)
		const detectors = "arn:aws:guardduty:*:*:detector/*"
		ids := c.Detectors
		var all []probe.Finding
		if len(ids) == 0 {
			out, err := client.ListDetectors(ctx, &guardduty.ListDetectorsInput{})
			f := probe.Call(callDetectors.api, "*", err)
			if err != nil {
				return []probe.Finding{f}
			}
			if len(out.DetectorIds) == 0 {
				return []probe.Finding{probe.Doubt(callDetectors.api, "*", "GuardDuty is not enabled", "enable it, or leave the region out")}
			}
			all, ids = append(all, f), out.DetectorIds
		}
		for _, id := range ids {
			out, err := client.ListFindings(ctx, &guardduty.ListFindingsInput{DetectorId: &id, MaxResults: aws.Int32(1)})
			f := probe.Call(callListFindings.api, detectors, err)
			if all = append(all, f); err != nil {
				continue
			}
			finding := "00000000000000000000000000000000"
			if len(out.FindingIds) > 0 {
				finding = out.FindingIds[0]
			}
			_, err = client.GetFindings(ctx, &guardduty.GetFindingsInput{DetectorId: &id, FindingIds: []string{finding}})
			if len(out.FindingIds) == 0 && probe.Allowed(err, awsclient.Refused) {
				err = nil
			}
			all = append(all, probe.Call(callGetFindings.api, detectors, err))
		}
		return all
	})
}

// Probe implements [probe.Prober]: whether the listener can be opened.
func (c HTTPConfig) Probe(ctx context.Context) []probe.Finding {
	var all []probe.Finding
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Address)
	if err == nil {
		_ = listener.Close()
		all = append(all, probe.Good("listen", c.Address, ""))
	} else {
		all = append(all, probe.Doubt("listen", c.Address, err.Error(), "none needed if penstock runs here already; else "+errHTTPListen.Fix))
	}
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	} else if host, _, err := net.SplitHostPort(c.Address); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		all = append(all, probe.Doubt("TLS", c.Address, "requests and their tokens can be read on the way", "set tls.cert_file and tls.key_file, or put a proxy with TLS before it"))
	}
	if c.TLS.ClientCAFile != "" {
		if _, err := os.Stat(c.TLS.ClientCAFile); err != nil {
			all = append(all, probe.Bad("client_ca_file", c.TLS.ClientCAFile, err.Error(), "name a PEM file that this user may read"))
		}
	}
	for i, e := range c.Endpoints {
		all = append(all, probe.Good("endpoint", "endpoints["+strconv.Itoa(i)+"]", string(e.Kind)+" "+e.Path))
	}
	return all
}

// Probe implements [probe.Prober]. The webhook itself is not called: each call moves
// its cursor.
func (c CensornetConfig) Probe(ctx context.Context) []probe.Finding {
	u, err := url.Parse(c.URL)
	if err != nil {
		return []probe.Finding{probe.Bad("url", "url", "not an address", "use the https address of the webhook")}
	}
	return []probe.Finding{
		probe.Reach(ctx, u, nil),
		probe.Doubt("key", u.Host, "not tried: each call moves the cursor of the webhook", "none needed; whether key and products are right shows when the source runs"),
	}
}
