package awsclient

import (
	"net/url"
	"strings"
)

// ForQueue completes the access to a queue by what its URL tells: the region, unless
// c has one, and the endpoint where the URL is not one of AWS. Calls do not go to the
// URL's host by themselves: the SDK goes by region and endpoint.
func (c Config) ForQueue(queueURL string) Config {
	u, err := url.Parse(queueURL)
	if err != nil {
		return c // a Validate has reported it
	}
	region := QueueRegion(queueURL)
	if c.EndpointURL == "" && (region == "" || strings.HasPrefix(u.Host, "sqs-fips.")) {
		c.EndpointURL = u.Scheme + "://" + u.Host
	}
	if region == "" {
		region = privateRegion(u.Hostname())
	}
	if c.Region == "" {
		c.Region = region
	}
	return c
}

// privateRegion tells the region from the host of an interface endpoint,
// <id>.sqs.<region>.vpce.amazonaws.com; "" for another host. Source: Amazon SQS
// Developer Guide, internetwork traffic privacy.
func privateRegion(host string) string {
	front, private := strings.CutSuffix(strings.TrimSuffix(host, ".cn"), ".vpce.amazonaws.com")
	_, region, sqs := strings.Cut(front, ".sqs.")
	if !private || !sqs {
		return ""
	}
	return region
}

// QueueARN is what a policy should name; * for a queue that is not of AWS.
func QueueARN(queueURL, region string) string {
	parts := strings.Split(strings.TrimSuffix(queueURL, "/"), "/")
	if len(parts) < 5 || region == "" || strings.Trim(parts[len(parts)-2], "0123456789") != "" {
		return "*"
	}
	return "arn:aws:sqs:" + region + ":" + parts[len(parts)-2] + ":" + parts[len(parts)-1]
}
