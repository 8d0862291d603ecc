# A rule of EventBridge that sends events to a queue, standard or FIFO, with dead-letter queues
# and a policy to read it with penstock.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "name" {
  description = "Name of the rule and of the queue."
  type        = string
  default     = "penstock-events"
}

variable "fifo" {
  description = "Makes a FIFO queue. penstock needs no order; a standard queue is faster."
  type        = bool
  default     = false
}

variable "message_group" {
  description = "Message group of all events of the rule, for a FIFO queue. Use another one for each rule."
  type        = string
  default     = "penstock"
}

variable "sources" {
  description = "The services whose events are sent. Empty for all events."
  type        = list(string)
  default     = ["aws.securityhub", "aws.guardduty"]
}

variable "retention_seconds" {
  description = "How long messages wait, 5 to 14 days."
  type        = number
  default     = 1209600

  validation {
    condition     = var.retention_seconds >= 432000 && var.retention_seconds <= 1209600
    error_message = "Use 432000 (5 days) to 1209600 (14 days)."
  }
}

locals {
  suffix = var.fifo ? ".fifo" : ""
}

resource "aws_sqs_queue" "dead_letters" {
  name                      = "${var.name}-dead${local.suffix}"
  fifo_queue                = var.fifo
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

# What EventBridge itself could not deliver. It takes standard queues only.
resource "aws_sqs_queue" "undelivered" {
  name                      = "${var.name}-undelivered"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue" "this" {
  name                        = "${var.name}${local.suffix}"
  fifo_queue                  = var.fifo
  content_based_deduplication = var.fifo
  message_retention_seconds   = var.retention_seconds
  receive_wait_time_seconds   = 20
  visibility_timeout_seconds  = 120
  sqs_managed_sse_enabled     = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = 1000
  })
}

resource "aws_cloudwatch_event_rule" "this" {
  name          = var.name
  event_pattern = length(var.sources) == 0 ? jsonencode({ source = [{ prefix = "" }] }) : jsonencode({ source = var.sources })
}

resource "aws_cloudwatch_event_target" "this" {
  rule = aws_cloudwatch_event_rule.this.name
  arn  = aws_sqs_queue.this.arn

  dynamic "sqs_target" {
    for_each = var.fifo ? [var.message_group] : []

    content {
      message_group_id = sqs_target.value
    }
  }

  dead_letter_config {
    arn = aws_sqs_queue.undelivered.arn
  }

  depends_on = [aws_sqs_queue_policy.this, aws_sqs_queue_policy.undelivered]
}

data "aws_iam_policy_document" "queue" {
  statement {
    sid       = "OnlyTheRuleSends"
    effect    = "Allow"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.this.arn, aws_sqs_queue.undelivered.arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [aws_cloudwatch_event_rule.this.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "this" {
  queue_url = aws_sqs_queue.this.id
  policy    = data.aws_iam_policy_document.queue.json
}

resource "aws_sqs_queue_policy" "undelivered" {
  queue_url = aws_sqs_queue.undelivered.id
  policy    = data.aws_iam_policy_document.queue.json
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid    = "ReadTheQueue"
    effect = "Allow"
    actions = [
      "sqs:ReceiveMessage",
      "sqs:DeleteMessage",
      "sqs:ChangeMessageVisibility",
      "sqs:GetQueueAttributes",
    ]
    resources = [aws_sqs_queue.this.arn]
  }
}

resource "aws_iam_policy" "reader" {
  name        = "${var.name}-reader"
  description = "What penstock needs to read the queue."
  policy      = data.aws_iam_policy_document.reader.json
}

output "queue_url" {
  description = "The queue_url of the source."
  value       = aws_sqs_queue.this.id
}

output "reader_policy_arn" {
  description = "To attach to the user or role that penstock uses."
  value       = aws_iam_policy.reader.arn
}
