require "active_record"

command, path = ARGV
$stdout.sync = true
ActiveRecord::Base.establish_connection(adapter: "sqlite3", database: path, timeout: 3000)
ActiveRecord::Migration.verbose = false

class Item < ActiveRecord::Base; end

def migrate(version)
  ActiveRecord::MigrationContext.new(File.join(__dir__, "migrate"), ActiveRecord::SchemaMigration).migrate(version)
end

case command
when "migrate"
  ActiveRecord::Base.connection.execute("PRAGMA journal_mode=wal")
  migrate(1)
when "migrate2"
  migrate(2)
when "work"
  # This version begins transactions as readers, and two writers find each other busy on any disk: try again.
  (1..ARGV[3].to_i).each do |n|
    deadline = nil
    begin
      count = Item.transaction do
        Item.create!(who: ARGV[2], n: n)
        Item.where(who: ARGV[2]).count
      end
    rescue ActiveRecord::StatementInvalid => e
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      deadline ||= now + 20
      retry if now < deadline
      puts "error: #{e.message}"
      exit
    end
    raise "#{count} rows, want #{n}" if count != n
    puts n
  end
when "check"
  Item.group(:who).order(:who).count.each { |who, n| puts "#{who} #{n}" }
end
