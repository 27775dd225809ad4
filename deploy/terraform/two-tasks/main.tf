# As ../example, with two tasks that share their state through ElastiCache.

module "vestibule" {
  source = "../"

  name               = "notebook"
  image              = var.vestibule_image
  issuer             = "https://clerk.example.com"
  preset             = "clerk"
  origins            = ["https://app.example.com"]
  backend_port       = 8000
  backend_credential = var.backend_credential
  log_group          = "/ecs/notebook"
  region             = "eu-central-1"
  vpc_id             = var.vpc_id
  load_balancer_arn  = var.load_balancer_arn
  listener_arn       = var.listener_arn
  listener_hosts     = ["notebook.example.com"]

  former_target_group_arn = var.former_target_group_arn
  weight                  = var.weight
  task_security_group_id  = var.security_groups[0]

  task = {
    cpu                = 512
    memory             = 1024
    execution_role_arn = var.execution_role_arn
  }

  backend_container = {
    name    = "backend"
    image   = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/notebook:1"
    command = ["uvicorn", "app:app", "--host", "127.0.0.1", "--port", "8000"]
  }

  # What two tasks have beyond one.
  shared = {
    url                 = "rediss://${aws_elasticache_replication_group.vestibule.primary_endpoint_address}:6379"
    username            = "vestibule"
    password_secret_arn = var.engine_password_arn
  }
  secrets            = { SESSION_SECRET = var.session_secret_arn }
  more_configuration = { browser = { session = { secret = "$${SESSION_SECRET}" } } }
}

resource "aws_ecs_service" "notebook" {
  name            = "notebook-vestibule"
  cluster         = var.cluster_arn
  launch_type     = "FARGATE"
  desired_count   = 2
  task_definition = module.vestibule.task_definition_arn

  # A roll-out starts new tasks before it stops old ones.
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  health_check_grace_period_seconds = 60
  enable_execute_command            = true

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  load_balancer {
    target_group_arn = module.vestibule.target_group_arn
    container_name   = module.vestibule.container_name
    container_port   = module.vestibule.container_port
  }

  network_configuration {
    subnets         = var.subnets
    security_groups = var.security_groups
  }

  depends_on = [module.vestibule]
}

# The engine. Under the default parameter group it may remove entries when memory is short: hence noeviction.
resource "aws_elasticache_parameter_group" "vestibule" {
  name   = "vestibule"
  family = "valkey8"

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

# The user itself is made outside of Terraform (README.md), so that its password is not in the state.
resource "aws_elasticache_user_group" "vestibule" {
  user_group_id = "vestibule"
  engine        = "valkey"
  user_ids      = [var.engine_user_id]
}

resource "aws_elasticache_subnet_group" "vestibule" {
  name       = "vestibule"
  subnet_ids = var.subnets
}

resource "aws_elasticache_replication_group" "vestibule" {
  replication_group_id = "vestibule"
  description          = "What the instances of Vestibule share"
  engine               = "valkey"
  engine_version       = "8.0"
  node_type            = "cache.t4g.micro"
  port                 = 6379

  # One shard: a primary and a replica that takes over.
  num_cache_clusters         = 2
  automatic_failover_enabled = true
  multi_az_enabled           = true

  transit_encryption_enabled = true
  at_rest_encryption_enabled = true

  parameter_group_name = aws_elasticache_parameter_group.vestibule.name
  user_group_ids       = [aws_elasticache_user_group.vestibule.user_group_id]
  subnet_group_name    = aws_elasticache_subnet_group.vestibule.name
  security_group_ids   = [aws_security_group.engine.id]
}

# Only the tasks reach it.
resource "aws_security_group" "engine" {
  name_prefix = "vestibule-engine-"
  description = "The engine of Vestibule's shared state"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "engine" {
  security_group_id            = aws_security_group.engine.id
  referenced_security_group_id = var.security_groups[0]
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
  description                  = "From the tasks"
}

variable "vestibule_image" { type = string }
variable "vpc_id" { type = string }
variable "load_balancer_arn" { type = string }
variable "listener_arn" { type = string }
variable "execution_role_arn" { type = string }
variable "cluster_arn" { type = string }
variable "subnets" { type = list(string) }
variable "security_groups" { type = list(string) }
variable "session_secret_arn" { type = string }
variable "engine_password_arn" { type = string }
variable "engine_user_id" { type = string }

variable "former_target_group_arn" { type = string }

variable "weight" {
  type    = number
  default = 0
}

variable "backend_credential" {
  type = object({
    header     = string
    secret_arn = string
  })
  sensitive = true
}
