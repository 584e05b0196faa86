# A Rails application: Puma, the router, a controller, a model, and the tasks of Rails for the migrations.
command, path, who, limit = ARGV
ENV["RAILS_ENV"] = "production"
ENV["VERBOSE"] = "false" # of the migrations
ENV["DATABASE_URL"] = "sqlite3:#{path}?timeout=3000&pool=8"
require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "puma"
require "puma/server"
require "net/http"

$stdout.sync = true

class App < Rails::Application
  config.root = __dir__
  config.eager_load = true
  config.secret_key_base = "0" * 64
  config.logger = Logger.new($stderr)
  config.log_level = :fatal
  config.active_record.dump_schema_after_migration = false
  config.paths["log"] = "/dev/null"
end

class Item < ActiveRecord::Base; end

class ItemsController < ActionController::API
  # A transaction of this version begins as a reader; two of them find each other busy on any disk.
  rescue_from(ActiveRecord::StatementInvalid) { |e| render plain: e.message, status: :service_unavailable }

  def create
    count = Item.transaction do
      Item.create!(who: params[:who], n: params[:n])
      Item.where(who: params[:who]).count
    end
    render plain: count.to_s
  end

  def index
    render plain: Item.group(:who).order(:who).count.map { |who, n| "#{who} #{n}\n" }.join
  end
end

App.initialize!
App.routes.draw { resources :items, only: %i[create index] }

def migrate(version)
  App.load_tasks
  ENV["VERSION"] = version
  Rake::Task["db:migrate"].invoke
end

def serve
  server = Puma::Server.new(Rails.application, Puma::Events.strings)
  port = server.add_tcp_listener("127.0.0.1", 0).addr[1]
  server.run
  Net::HTTP.start("127.0.0.1", port) { |http| yield http }
ensure
  server&.stop(true)
end

def work(http, who, limit)
  (1..limit).each do |n|
    deadline = nil
    begin
      answer = http.post("/items", "who=#{who}&n=#{n}")
      break if answer.code == "200"
      raise "#{answer.code} #{answer.body}" if answer.code != "503"
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      deadline ||= now + 20
      if now >= deadline
        puts "error: #{answer.body}"
        return
      end
    end while true
    raise "#{answer.body} rows, want #{n}" if answer.body != n.to_s
    puts n
  end
end

case command
when "migrate" then migrate("1")
when "migrate2" then migrate("2")
when "work" then serve { |http| work(http, who, limit.to_i) }
when "check" then serve { |http| print http.get("/items").body }
end
