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
  Item.load_schema # else the first transaction begins with a read, and cannot write if somebody else has meanwhile
  begin
    (1..ARGV[3].to_i).each do |n|
      count = Item.transaction do
        Item.create!(who: ARGV[2], n: n)
        Item.where(who: ARGV[2]).count
      end
      raise "#{count} rows, want #{n}" if count != n
      puts n
    end
  rescue ActiveRecord::StatementInvalid => e
    puts "error: #{e.message}"
  end
when "check"
  Item.group(:who).order(:who).count.each { |who, n| puts "#{who} #{n}" }
end
