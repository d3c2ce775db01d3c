# Installs, upgrades or removes the Skein agent on Windows 10 and 11, for the user, without administrator rights:
#   irm URL/install.ps1 | iex
#   & ([scriptblock]::Create((irm URL/install.ps1))) -Headless -Payout ADDRESS
#   & ([scriptblock]::Create((irm URL/install.ps1))) -Uninstall
# It installs only what a release key has signed, and never by halves. All that it does is in one function, called on
# the last line; PowerShell runs nothing of a copy that was cut off.
# Windows PowerShell 5.1 and .NET have no ed25519: the signature is checked by ssh-keygen of Windows' OpenSSH client.

# A release is stamped by replacing these two lines: `installer/stamp` does it.
$SkeinUrlDefault = ''
$ReleaseKeys = ''

function Install-Skein {
    [CmdletBinding()]
    param(
        # This version, even if it is older than the installed one.
        [string]$Version = '',
        # Newest of this channel instead of stable; later updates follow it as well.
        [string]$Channel = '',
        # Nobody sits at this machine: no tray icon, no rule about an owner's use. Kept when this is run again.
        [switch]$Headless,
        # Somebody does, after an earlier -Headless.
        [switch]$Attended,
        # Where earnings go; kept in config.toml of the data directory.
        [string]$Payout = '',
        # Obey the owner of this key from afar, as `skein fleet key` prints it; kept there too.
        [string]$Owner = '',
        [switch]$NoStart,
        # A release's zip, without a network; manifest.json and manifest.json.sshsig lie beside it.
        [string]$File = '',
        # Remove program, task and PATH entry; the key, the log and all data stay.
        [switch]$Uninstall,
        # With -Uninstall: remove the data too, after asking unless -Yes.
        [switch]$Purge,
        [switch]$Yes
    )
    Set-StrictMode -Version 2.0
    $ErrorActionPreference = 'Stop'
    # The progress bar of Windows PowerShell makes downloads many times slower.
    $ProgressPreference = 'SilentlyContinue'

    function Stop-Here([string]$What, [string]$Hint) { throw "$What`nhint: $Hint" }

    # Whether it succeeded. Under 'Stop', Windows PowerShell takes any word on standard error for a reason to end.
    function Invoke-Quietly([string]$Program, [string[]]$Arguments) {
        $ErrorActionPreference = 'Continue'
        # A damaged program does not even start.
        try { & $Program @Arguments *> $null } catch { return $false }
        return $LASTEXITCODE -eq 0
    }

    # What a program says first, or nothing: one that is damaged is there to be replaced.
    function Get-Words([string]$Program, [string[]]$Arguments) {
        $ErrorActionPreference = 'Continue'
        try { return [string](& $Program @Arguments 2>$null | Select-Object -First 1) } catch { return '' }
    }

    function Get-Release([string]$From, [string]$To, [string]$What) {
        try {
            Invoke-WebRequest -UseBasicParsing -Uri $From -OutFile $To -TimeoutSec 600
        } catch {
            Stop-Here "cannot fetch $What from ${From}: $($_.Exception.Message)" 'is the network up and the address right? Then run this again'
        }
    }

    # Runs a program with a file as its standard input, byte by byte; gives its exit status. PowerShell's own pipe
    # changes bytes.
    function Invoke-Program([string]$Program, [string]$Arguments, [string]$Standard) {
        $out = Join-Path $stage 'out'
        $options = @{
            FilePath = $Program; ArgumentList = $Arguments; NoNewWindow = $true; PassThru = $true; Wait = $true
            RedirectStandardInput = $Standard; RedirectStandardOutput = $out; RedirectStandardError = "$out.error"
        }
        $process = Start-Process @options
        return $process.ExitCode
    }

    # semver.org's order, as a text that sorts: enough for x.y.z and x.y.z-word.n.
    function Get-Order([string]$Text) {
        $core, $before = ($Text -replace '\+.*', '') -split '-', 2
        $pad = { param($part) if ($part -match '^\d+$') { '0' + $part.PadLeft(10, '0') } else { '1' + $part } }
        $order = (($core -split '\.') | ForEach-Object { & $pad $_ }) -join '.'
        if ($before) { return $order + '-' + ((($before -split '\.') | ForEach-Object { & $pad $_ }) -join '-') }
        # A release comes after all that lead to it.
        return $order + '~'
    }

    function Test-Older([string]$One, [string]$Other) {
        return [string]::CompareOrdinal((Get-Order $One), (Get-Order $Other)) -lt 0
    }

    # SHA-256 in hexadecimal digits. By .NET, as archives are unpacked: PowerShell's own commands for both are scripts, which
    # are not there where another version's modules come first or scripts are forbidden.
    function Get-Digest([string]$Path) {
        $stream = [IO.File]::OpenRead($Path)
        $sha256 = [Security.Cryptography.SHA256]::Create()
        try {
            return [BitConverter]::ToString($sha256.ComputeHash($stream)) -replace '-', ''
        } finally {
            $stream.Dispose()
            $sha256.Dispose()
        }
    }

    # The user's PATH as it is stored, with its %VARIABLES%.
    function Set-UserPath([bool]$With) {
        $key = Get-Item 'HKCU:\Environment'
        $stored = [string]$key.GetValue('Path', '', 'DoNotExpandEnvironmentNames')
        $entries = @($stored -split ';' | Where-Object { $_ -and ($_.TrimEnd('\') -ne $bin) })
        if ($With) { $entries += $bin }
        $wanted = $entries -join ';'
        if ($wanted -eq $stored) { return }
        Set-ItemProperty 'HKCU:\Environment' -Name Path -Value $wanted -Type ExpandString
        # Setting any variable this way tells running programs that the environment has changed.
        [Environment]::SetEnvironmentVariable('SKEIN_PATH_CHANGED', $null, 'User')
    }

    # Everything that runs out of our directory: after an update the old image goes on under another name, as skein.gone-0.exe.
    function Get-Running {
        return @(Get-Process -Name 'skein*' -ErrorAction SilentlyContinue | Where-Object {
            $path = try { $_.Path } catch { $null }
            $path -and $path.StartsWith("$bin\", [StringComparison]::OrdinalIgnoreCase)
        })
    }

    # Asks the agent to leave, so that it ends its leases and says goodbye; ends one that does not, and waits until nothing
    # of it runs: what runs can be neither replaced nor removed.
    function Stop-Agent {
        $left = $false
        if ((Test-Path $program) -and (Test-Path (Join-Path $data 'agent.json'))) {
            $left = Invoke-Quietly $program 'down', '--data-dir', $data
        }
        $tasks = @('Skein tray')
        if (-not $left) { $tasks += 'Skein' }
        foreach ($task in $tasks) { [void](Invoke-Quietly schtasks.exe '/End', '/TN', $task) }
        for ($tries = 0; $tries -lt 100; $tries++) {
            $running = @(Get-Running)
            if (-not $running) { return }
            Start-Sleep -Milliseconds 100
        }
        # One that has just ended by itself is no error.
        $running | Stop-Process -Force -ErrorAction SilentlyContinue
        $running | Wait-Process -Timeout 10 -ErrorAction SilentlyContinue
    }

    # A path as one argument: what ends in a backslash would take the quote along.
    function Get-Quoted([string]$Path) { return '"' + ($Path -replace '(\\+)$', '$1$1') + '"' }

    # What a task runs, as @{Command; Arguments}, or nothing if there is none. Not by schtasks, whose output has question
    # marks for letters that the console does not know, such as those of a user's name.
    function Get-Task([string]$Name) {
        try {
            $service = New-Object -ComObject Schedule.Service
            $service.Connect()
            $exec = ([xml]$service.GetFolder('\').GetTask($Name).Xml).Task.Actions.Exec
            return @{ Command = [string]$exec.Command; Arguments = [string]$exec.Arguments }
        } catch {
            return $null
        }
    }

    # The data of the agent that is installed: in another place there would be another agent, without this one's key.
    function Get-KeptData {
        $task = Get-Task 'Skein'
        if ($task -and $task.Arguments -match '--data-dir "([^"]*)"') {
            # Get-Quoted has doubled the backslashes at its end.
            return $Matches[1] -replace '(\\+)\1$', '$1'
        }
        return ''
    }

    # A task at the user's log-on. The defaults of schtasks would end it after three days and on battery. Nothing of it
    # repeats: a repetition that brings back what has died would also bring back what `skein down` has ended, and
    # RestartOnFailure is for what could not be started. One that is there already is left with all that its owner
    # has changed about it.
    function Set-Task([string]$Name, [string]$Arguments) {
        $task = Get-Task $Name
        if ($task -and $task.Command -eq $program -and $task.Arguments -ceq $Arguments) { return }
        $escape = { param($text) [Security.SecurityElement]::Escape($text) }
        $user = & $escape "$env:USERDOMAIN\$env:USERNAME"
        $xml = @"
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers><LogonTrigger><Enabled>true</Enabled><UserId>$user</UserId></LogonTrigger></Triggers>
  <Principals><Principal id="Author"><UserId>$user</UserId><LogonType>InteractiveToken</LogonType><RunLevel>LeastPrivilege</RunLevel></Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure><Interval>PT1M</Interval><Count>10</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author"><Exec><Command>$(& $escape $program)</Command><Arguments>$(& $escape $Arguments)</Arguments></Exec></Actions>
</Task>
"@
        $definition = Join-Path $stage 'task.xml'
        [IO.File]::WriteAllText($definition, $xml, [Text.Encoding]::Unicode)
        if (-not (Invoke-Quietly schtasks.exe '/Create', '/F', '/TN', $Name, '/XML', $definition)) {
            Stop-Here "installed, but Windows does not take the task '$Name'" "start the agent by hand: & '$program' up"
        }
    }

    # config.toml with the address of -Payout, the key of -Owner and the name of -Channel before all else, where no table has
    # begun.
    function Set-Config {
        [void](New-Item -ItemType Directory -Force $data)
        $settings = Join-Path $data 'config.toml'
        $given = @()
        $lines = @()
        if ($Payout) { $given += 'payout'; $lines += "payout = `"$Payout`"" }
        if ($Owner) { $given += 'owner'; $lines += "owner = `"$Owner`"" }
        if ($Channel) { $given += 'update_channel'; $lines += "update_channel = `"$Channel`"" }
        $replaced = '^\s*(' + ($given -join '|') + ')\s*='
        if (Test-Path $settings) {
            $table = $false
            foreach ($line in [IO.File]::ReadAllLines($settings)) {
                if ($line -match '^\s*\[') { $table = $true }
                if ($table -or $line -notmatch $replaced) { $lines += $line }
            }
        }
        [IO.File]::WriteAllText("$settings.skein-new", ($lines -join "`n") + "`n")
        Move-Item -Force "$settings.skein-new" $settings
    }

    function Remove-Skein {
        Stop-Agent
        foreach ($task in 'Skein', 'Skein tray') {
            [void](Invoke-Quietly schtasks.exe '/Delete', '/F', '/TN', $task)
        }
        Set-UserPath $false
        # Nothing of ours ends up in this directory but what the installer and the agent put there.
        if (Test-Path $bin) { Remove-Item -Recurse -Force $bin }
        Write-Host "removed skein from $bin"
        if (-not (Test-Path $data)) { return }
        if (-not $Purge) {
            # What told where they are is gone with the task.
            $place = if ($data -ne $usual) { " with SKEIN_DATA_DIR set to it" } else { '' }
            Write-Host "The key, the log and all data stay in $data; -Uninstall -Purge$place removes them too."
            return
        }
        if (-not ((Test-Path (Join-Path $data 'identity.key')) -or (Test-Path (Join-Path $data 'config.toml')))) {
            Stop-Here "$data does not look like an agent's data" 'it was left as it is; remove it by hand if it is'
        }
        if (-not $Yes -and (Read-Host "Remove $data with the key that earned and its log, for ever? Type yes") -ne 'yes') {
            Write-Host "The data stay in $data."
            return
        }
        Remove-Item -Recurse -Force $data
        Write-Host "removed $data"
    }

    # Ends with an error unless a release key has signed exactly this manifest.
    function Assert-Signed([string]$Manifest) {
        $keygen = Join-Path $env:SystemRoot 'System32\OpenSSH\ssh-keygen.exe'
        if (-not (Test-Path $keygen)) {
            $command = Get-Command ssh-keygen.exe -ErrorAction SilentlyContinue
            if (-not $command) {
                Stop-Here "nothing here can check the release's signature" "install Windows' OpenSSH client: Settings, System, Optional features, OpenSSH Client. Then run this again"
            }
            $keygen = $command.Path
        }
        $signers = Join-Path $stage 'signers'
        $text = ''
        foreach ($key in $ReleaseKeys -split ' ') {
            if ($key -cnotmatch '^[0-9a-f]{64}$') { Stop-Here 'this copy of install.ps1 has a damaged release key' 'fetch it again' }
            # As OpenSSH has it: the lengths and the name of the kind, then the length and the 32 bytes.
            $blob = '0000000b7373682d6564323535313900000020' + $key
            $bytes = [byte[]](0..($blob.Length / 2 - 1) | ForEach-Object { [Convert]::ToByte($blob.Substring(2 * $_, 2), 16) })
            $text += "skein-release namespaces=`"skein-release`" ssh-ed25519 $([Convert]::ToBase64String($bytes))`n"
        }
        [IO.File]::WriteAllText($signers, $text)
        $arguments = "-Y verify -f `"$signers`" -I skein-release -n skein-release -s `"$Manifest.sshsig`""
        if ((Invoke-Program $keygen $arguments $Manifest) -ne 0) {
            $words = [IO.File]::ReadAllText((Join-Path $stage 'out.error')).Trim()
            Stop-Here "the release's signature does not verify: $words" 'nothing was installed. An ssh-keygen before 8.1 cannot check it: update Windows. Else tell the makers, as somebody may have changed the files'
        }
    }

    [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
    if (-not $env:LOCALAPPDATA) { Stop-Here 'LOCALAPPDATA is not set' 'run this as an ordinary user of Windows' }
    $bin = Join-Path $env:LOCALAPPDATA 'Programs\skein'
    $program = Join-Path $bin 'skein.exe'
    $stage = Join-Path $bin '.skein-install'
    $usual = Join-Path $env:LOCALAPPDATA 'skein'
    $kept = Get-KeptData
    $data = if ($env:SKEIN_DATA_DIR) { $env:SKEIN_DATA_DIR } elseif ($kept) { $kept } else { $usual }
    if (-not $env:SKEIN_DATA_DIR -and $data -ne $usual) {
        Write-Host "kept from the installation before: the data in $data; SKEIN_DATA_DIR chooses another place"
    }
    # Whatever directory a task is started in, and without what would take the quote along when it is an argument here.
    $data = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($data)
    if ($data.Length -gt 3) { $data = $data.TrimEnd('\') }
    if ($Uninstall) { Remove-Skein; return }
    if ($Headless -and $Attended) { Stop-Here '-Headless and -Attended exclude each other' 'does anybody sit at this machine?' }

    if ($Version -and $Version -notmatch '^[0-9A-Za-z.+-]+$') { Stop-Here "-Version $Version is not a version" 'such as -Version 0.2.0' }
    if ($Channel -and $Channel -cnotmatch '^[a-z0-9-]+$') { Stop-Here "-Channel $Channel is not a channel" 'stable or beta' }
    if ($Payout -and $Payout -cnotmatch '^[0-9A-Za-z:._@-]{1,128}$') { Stop-Here '-Payout is not an address' 'at most 128 of A-Z a-z 0-9 : . _ @ -; copy it again' }
    if ($Owner -and $Owner -notmatch '^[0-9A-Fa-f]{64}$') { Stop-Here '-Owner is not a key: 64 hexadecimal digits' "'skein fleet key' on the owner's machine prints it" }
    if (-not $ReleaseKeys) { Stop-Here 'this copy of install.ps1 trusts no release key, so it can install nothing' 'fetch the one that lies beside the releases: it has the keys in it' }
    $machine = if ($env:PROCESSOR_ARCHITEW6432) { $env:PROCESSOR_ARCHITEW6432 } else { $env:PROCESSOR_ARCHITECTURE }
    if ($machine -ne 'AMD64') { Stop-Here "there is no Skein for Windows on '$machine'" 'it runs on x86_64' }
    $base = $(if ($env:SKEIN_URL) { $env:SKEIN_URL } else { $SkeinUrlDefault }).TrimEnd('/')
    if (-not $base -and -not $File) { Stop-Here 'this copy of install.ps1 does not know where releases are' 'set SKEIN_URL, or give -File a zip' }

    # On the same volume as the program, so that putting it into place is one rename.
    if (Test-Path $stage) { Remove-Item -Recurse -Force $stage }
    [void](New-Item -ItemType Directory -Force $stage)
    try {
        $manifest = Join-Path $stage 'manifest.json'
        if ($File) {
            $File = (Resolve-Path $File).Path
            foreach ($end in '', '.sshsig') {
                $beside = (Join-Path (Split-Path $File) 'manifest.json') + $end
                if (-not (Test-Path $beside)) { Stop-Here "there is no $beside" 'copy manifest.json and manifest.json.sshsig of the release beside the zip' }
                Copy-Item $beside "$manifest$end"
            }
        } else {
            $from = if ($Version) { "$base/$Version/manifest.json" } else { "$base/$(if ($Channel) { $Channel } else { 'stable' }).json" }
            Write-Host "fetching $from"
            Get-Release $from $manifest 'what the release holds'
            Get-Release "$from.sshsig" "$manifest.sshsig" 'the signature'
        }
        Assert-Signed $manifest

        $target = 'x86_64-pc-windows-gnu'
        $release = [IO.File]::ReadAllText($manifest) | ConvertFrom-Json
        if ($release.schema -ne 'skein-release/1') { Stop-Here "the release's manifest is of a kind that this installer does not know" 'fetch install.ps1 anew and run that' }
        if ($Version -and $Version -ne $release.version) { Stop-Here "version $Version was asked for and $($release.version) came" 'tell the makers' }
        $name = "skein-$($release.version)-$target"
        $archive = @($release.files | Where-Object { $_.kind -eq 'archive' -and $_.target -eq $target -and $_.name -eq "$name.zip" })
        if ($archive.Count -ne 1) { Stop-Here "skein $($release.version) has not been built for $target" 'choose another by -Version' }
        $installed = ''
        if ((Test-Path $program) -and (Get-Words $program '--version') -match '^skein (\d\S*)') { $installed = $Matches[1] }
        if ($installed -and -not $Version -and (Test-Older $release.version $installed)) {
            Stop-Here "skein $installed is installed, and what was fetched is the older $($release.version)" "if you do want the older one: -Version $($release.version)"
        }

        $zip = Join-Path $stage 'archive.zip'
        if ($File) {
            Copy-Item $File $zip
        } else {
            Write-Host "fetching skein $($release.version) for $target"
            Get-Release "$base/$($release.version)/$name.zip" $zip 'the program'
        }
        $came = (Get-Item $zip).Length
        if ($came -ne $archive[0].bytes) { Stop-Here "the archive is $came bytes long and should be $($archive[0].bytes): it was cut off or changed" 'nothing was installed. Run this again' }
        if ((Get-Digest $zip) -ne $archive[0].sha256) { Stop-Here 'the archive is not the one that was signed: its SHA-256 is wrong' 'nothing was installed. Run this again; if it stays so, tell the makers' }
        Add-Type -AssemblyName System.IO.Compression.FileSystem
        [IO.Compression.ZipFile]::ExtractToDirectory($zip, (Join-Path $stage 'tree'))
        $tree = Join-Path $stage "tree\$name"
        $says = Get-Words (Join-Path $tree 'skein.exe') '--version'
        if (-not ($says -eq "skein $($release.version)" -or $says.StartsWith("skein $($release.version) "))) {
            Stop-Here "the new program says it is '$says', not 'skein $($release.version)'" 'nothing was installed. Is a virus scanner in the way? Else tell the makers'
        }

        if (-not $Headless -and -not $Attended) {
            $task = Get-Task 'Skein'
            if ($task -and $task.Arguments -match '^up --headless( |$)') {
                $Headless = $true
                Write-Host '-Headless is kept from the installation before; -Attended ends it.'
            }
        }
        $ran = @(Get-Running).Count -gt 0
        try {
            # A program that runs can be renamed, not replaced.
            Stop-Agent
            # `skein update --back` looks for it under this name.
            $old = Join-Path $bin 'skein.old.exe'
            if (Test-Path $program) {
                if (Test-Path $old) { Remove-Item -Force $old }
                Move-Item $program $old
            }
            try {
                Move-Item (Join-Path $tree 'skein.exe') $program
            } catch {
                if (Test-Path $old) { Move-Item $old $program }
                throw
            }
            # What updates have left, one that was not proven yet among them: it is older than this version, or not asked for.
            foreach ($left in 'skein.new.exe', 'skein.old-part.exe', 'skein.gone-*', 'skein.old') {
                Remove-Item -Force (Join-Path $bin $left) -ErrorAction SilentlyContinue
            }
            foreach ($document in 'LICENSE', 'LICENSES-OF-DEPENDENCIES.txt', 'README.md') {
                if (Test-Path (Join-Path $tree $document)) { Move-Item -Force (Join-Path $tree $document) (Join-Path $bin $document) }
            }
            if ($Payout -or $Owner -or $Channel) { Set-Config }
            Set-UserPath $true
            # A task has its own environment: it is told the place of the data.
            $place = "--data-dir $(Get-Quoted $data)"
            # The agent shows the icon too; whichever comes second leaves.
            Set-Task 'Skein' $(if ($Headless) { "up --headless $place" } else { "up $place" })
            if ($Headless) { [void](Invoke-Quietly schtasks.exe '/Delete', '/F', '/TN', 'Skein tray') } else { Set-Task 'Skein tray' "tray $place" }
        } catch {
            # Whichever version is there now: what ran before this goes on.
            if ($ran) { foreach ($task in 'Skein', 'Skein tray') { [void](Invoke-Quietly schtasks.exe '/Run', '/TN', $task) } }
            throw
        }
    } finally {
        Remove-Item -Recurse -Force $stage -ErrorAction SilentlyContinue
    }
    Write-Host "installed skein $($release.version): $program"
    Write-Host "Open a new terminal to have 'skein' in PATH."
    if ($NoStart) {
        Write-Host 'To start it: schtasks /Run /TN Skein'
        return
    }
    if (-not (Invoke-Quietly schtasks.exe '/Run', '/TN', 'Skein')) {
        Write-Host "Windows does not start the task 'Skein'. If you have disabled it: schtasks /Change /TN Skein /ENABLE"
        return
    }
    if (-not $Headless) { [void](Invoke-Quietly schtasks.exe '/Run', '/TN', 'Skein tray') }
    # What a program writes to standard error is no reason to end here.
    $ErrorActionPreference = 'Continue'
    for ($tries = 0; $tries -lt 30; $tries++) {
        $words = & $program status --data-dir $data 2>&1
        if ($LASTEXITCODE -eq 0) {
            $words
            return
        }
        Start-Sleep -Seconds 1
    }
    $ErrorActionPreference = 'Stop'
    Stop-Here "skein is installed, but does not answer after $tries s: $words" "run it in a terminal to see why: & '$program' up"
}

if ($true) { Install-Skein @args }
