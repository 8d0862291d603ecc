package sources

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
)

// target is what is called.
type target struct {
	// api is the operation, e.g. "cloudtrail:LookupEvents": a metric label.
	api string
	// region that is asked; empty where there are none.
	region string
	// limit names the rate that operations have in common, e.g. "logs"; empty is
	// that of the operation alone.
	limit string
	// rate is the quota of the API, where the configuration does not say one. Unit:
	// calls a second.
	rate float64
	// timeout of one call, reading its answer included; 0 is two minutes.
	timeout time.Duration
}

const (
	// pollCallTimeout bounds one call, reading its answer included.
	pollCallTimeout = 2 * time.Minute
	// throttledAttempts and failedAttempts of one call in a row, after which the pull gives up for now.
	throttledAttempts = 8
	failedAttempts    = 4
	// longestRetryAfter is how long a far side may tell us to wait.
	longestRetryAfter = 10 * time.Minute
)

// call makes one call within the shared rate, and again what may pass: throttling,
// after a pause that holds back all replicas, and outages. What f returns is
// explained by [awsclient.Explain] unless it is a fault already. The error of an
// expired page token is ingest.page_token_expired.
func (c *caller) call(ctx context.Context, to target, f func(ctx context.Context) error) error {
	rate := c.s.cfg.RequestsPerSecond
	if rate <= 0 {
		rate = to.rate
	}
	limit := to.limit
	if limit == "" {
		limit = to.api
	}
	budget := c.s.deps.Bus.Budget(cmp.Or(c.s.cfg.Account, c.s.cfg.who)+"|"+to.region+"|"+limit, rate)
	var again backoff
	for attempt := 1; ; attempt++ {
		if c.again != nil { // half of the rate is for what is live
			if err := c.again.wait(c.stopping, rate/2); err != nil { //nolint:contextcheck // ctx goes on for a while when the source stops, and waiting should not
				return err
			}
		}
		if err := budget.Take(c.stopping); err != nil { //nolint:contextcheck // ctx goes on for a while when the source stops, and waiting should not
			return err
		}
		err := c.once(ctx, to, f)
		if err == nil || ctx.Err() != nil {
			return err
		}
		most := failedAttempts
		wait := again.next()
		switch {
		case errors.Is(err, awsclient.Throttled), errors.Is(err, errHookBusy):
			most = throttledAttempts
			wait = max(wait, retryAfter(err))
			if attempt < most {
				mPollThrottled.WithLabelValues(c.s.deps.Name, to.api).Inc()
				if err := budget.Close(c.stopping, wait); err != nil { //nolint:contextcheck // ctx goes on for a while when the source stops, and waiting should not
					return err
				}
				continue // the budget is the pause
			}
		case errors.Is(err, errPageGone), fault.ClassOf(err) != fault.Retry:
			return err
		}
		if attempt >= most {
			return err
		}
		if !pause(c.stopping, max(wait, retryAfter(err))) { //nolint:contextcheck // ctx goes on for a while when the source stops, and waiting should not
			return context.Cause(c.stopping) //nolint:contextcheck // ctx goes on for a while when the source stops, and waiting should not
		}
	}
}

// once makes one call.
func (c *caller) once(ctx context.Context, to target, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(to.timeout, pollCallTimeout))
	defer cancel()
	began := time.Now()
	err := f(ctx)
	mPollCallTime.WithLabelValues(c.s.deps.Name, to.api).Observe(time.Since(began).Seconds())
	if err == nil {
		mPollCalls.WithLabelValues(c.s.deps.Name, to.api).Inc()
		c.mu.Lock()
		c.responses++
		c.mu.Unlock()
		return nil
	}
	if gone := expiredPage(err); gone {
		err = errPageGone.New(awsclient.Explain(err), "read the next page")
	}
	err = awsclient.Explain(err)
	mCallErrors.WithLabelValues(c.s.deps.Name, to.api, fault.CodeOf(err)).Inc()
	return err
}

// expiredPage tells whether the API does not know a page token any more.
func expiredPage(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	code := strings.ToLower(api.ErrorCode())
	if strings.Contains(code, "nexttoken") || strings.Contains(code, "paginationtoken") || strings.Contains(code, "pagetoken") {
		return true
	}
	// CloudWatch Logs and GuardDuty say so in words only. Not every expired token is
	// one of a page.
	words := strings.ToLower(api.ErrorMessage())
	return strings.Contains(words, "nexttoken") || strings.Contains(words, "next token") || strings.Contains(words, "pagination token")
}

// waiter is an error that knows how long to wait.
type waiter interface{ RetryAfter() time.Duration }

// retryAfter is how long the far side says to wait, in its header of that name:
// seconds or a date. 0 when it does not.
func retryAfter(err error) time.Duration {
	var w waiter
	if errors.As(err, &w) {
		return min(max(0, w.RetryAfter()), longestRetryAfter)
	}
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) || response.Response == nil || response.Response.Response == nil {
		return 0
	}
	return readRetryAfter(response.Response.Header.Get("Retry-After"), time.Now())
}

func readRetryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(s)*time.Second, longestRetryAfter)
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(0, at.Sub(now)), longestRetryAfter)
	}
	return 0
}

// pollAWS makes the configuration from which a poller's clients are made; each sets
// its region. The SDK's own retries are off: they would not know of the budget.
func pollAWS(ctx context.Context, c awsclient.Config) (aws.Config, error) {
	cfg, err := awsclient.Load(ctx, c)
	if err != nil {
		return aws.Config{}, err
	}
	cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	return cfg, nil
}

// accountOf tells the account from the role that is assumed last, "" otherwise.
func accountOf(c awsclient.Config) string {
	for _, arn := range []string{c.TargetAssumeRole, c.BaseAssumeRole} {
		if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
			return parts[4]
		}
	}
	return ""
}
