variable "name" {
  description = "Name of the service; part of the names of everything made here."
  type        = string
}

variable "image" {
  description = "The image of Vestibule, with a tag or a digest."
  type        = string
}

variable "backend_container" {
  description = "The backend's container definition, as it stands in its task definition now. Its published ports are taken away, and its provider secrets."
  type        = any
}

variable "backend_port" {
  description = "Where the backend listens. It should listen on 127.0.0.1."
  type        = number
}

variable "provider_secret_names" {
  description = "Environment variables of the backend that hold the identity provider's secrets. They are taken out of its container: it needs them no longer, and the code that it runs could read them."
  type        = list(string)
  default     = ["CLERK_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_JWT_SECRET", "AUTH0_CLIENT_SECRET"]
}

variable "issuer" {
  description = "The iss of your tokens, exactly."
  type        = string
}

variable "preset" {
  description = "oidc, clerk, supabase, auth0, cognito, keycloak or google."
  type        = string
  default     = "oidc"
}

variable "audience" {
  description = "Whom the tokens are for; null where the preset fixes it (clerk, supabase)."
  type        = string
  default     = null
}

variable "origins" {
  description = "Your front ends, such as https://app.example.com."
  type        = list(string)
  default     = []
}

variable "trusted_proxies" {
  description = "Whose X-Forwarded-* is believed: the subnets of the load balancer, or private_ranges."
  type        = list(string)
  default     = ["private_ranges"]
}

variable "public_paths" {
  description = "Paths that need no token, such as the health check's."
  type        = list(string)
  default     = ["/health"]
}

variable "more_configuration" {
  description = "Further keys of the configuration (docs/configuration.md), merged over what this module writes."
  type        = any
  default     = {}
}

variable "backend_credential" {
  description = "The backend's own secret: the header it expects it in, and the ARN of the secret. null: none, and then `vestibule doctor` says so."
  type = object({
    header     = string
    secret_arn = string
  })
  default   = null
  sensitive = true
}

variable "secrets" {
  description = "Environment variable => ARN in Secrets Manager, for Vestibule alone; the configuration names them as $${NAME}."
  type        = map(string)
  default     = {}
  sensitive   = true
}

variable "cpu" {
  description = "CPU units of Vestibule."
  type        = number
  default     = 64
}

variable "memory" {
  description = "Memory of Vestibule in MiB."
  type        = number
  default     = 64
}

variable "task" {
  description = "What the task as a whole needs, as in its task definition now."
  type = object({
    cpu                = number
    memory             = number
    execution_role_arn = string
    task_role_arn      = optional(string)
    architecture       = optional(string, "ARM64")
  })
}

variable "log_group" {
  description = "The CloudWatch log group."
  type        = string
}

variable "region" {
  description = "The region of the log group."
  type        = string
}

variable "vpc_id" {
  description = "The VPC of the load balancer."
  type        = string
}

variable "load_balancer_arn" {
  description = "The load balancer, whose idle time-out is looked at."
  type        = string
}

variable "listener_arn" {
  description = "The listener that gets the rule; null: you forward to the target group yourself."
  type        = string
  default     = null
}

variable "listener_hosts" {
  description = "Host names of the rule."
  type        = list(string)
  default     = []
}

variable "listener_priority" {
  description = "Priority of the rule."
  type        = number
  default     = 100
}

variable "health_check_path" {
  description = "What the load balancer asks. The backend's own path through Vestibule tells of both; /.vestibule/readyz tells of Vestibule alone."
  type        = string
  default     = "/health"
}

variable "stickiness" {
  description = "As the target group has it now: { type, cookie_duration }; null: none."
  type = object({
    type            = string
    cookie_duration = number
  })
  default = null
}
